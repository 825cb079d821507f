"""The page of tools/demo.py as AI Studio starts it: a file that ends in .gradio.py, without options."""

import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
runpy.run_path(str(TOOLS / "demo.py"), run_name="__main__")
