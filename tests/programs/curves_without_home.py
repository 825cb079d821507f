"""Write VisualDL curves to ./curves as a user without a passwd entry."""

import os
import pwd
import sys
from pathlib import Path

pwd.getpwuid = {}.__getitem__
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from t2t_vit.runs.visualdl import Scalars  # noqa: E402

home = os.environ.get("HOME")
Scalars().open(Path("curves").absolute())
assert os.environ.get("HOME") == home
