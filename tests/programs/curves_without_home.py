"""Writes VisualDL curves to ./curves as a user without a name in the system."""

import pwd
import sys
from pathlib import Path

pwd.getpwuid = {}.__getitem__
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from t2t_vit.runs.visualdl import Scalars  # noqa: E402

Scalars().open(Path("curves").absolute())
