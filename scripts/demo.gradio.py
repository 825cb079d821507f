"""Starts tools/demo.py on AI Studio, which runs a file named *.gradio.py without options.

AI Studio deploys only the folder of this file. It must also contain tools/, configs/ and model/, a run folder with
best.pdparams (docs/demo.md, "Deploy the page on AI Studio"). In the repository, tools/ is one folder up.
"""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "model/best.pdparams"
TOOLS = HERE / "tools" if (HERE / "tools/demo.py").is_file() else HERE.parent / "tools"

sys.path.insert(0, str(TOOLS))
if MODEL.is_file():
    sys.argv[1:] = ["--pretrained", str(MODEL)]
runpy.run_path(str(TOOLS / "demo.py"), run_name="__main__")
