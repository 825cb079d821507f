"""tools/train.py in a process that dies at one write to disk: dying_train.py CALL NAME COUNT WORDS.

CALL is replace (files take their names by it) or fsync (lines are written by then). The process ends, as if killed,
before the call number COUNT for a file or folder called NAME.
"""

import os
import runpy
import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[2] / "tools/train.py"


def dying(call, name, count):
    """The function `call` of the module os, which ends the process in place of its call number `count` for `name`."""
    original, calls = getattr(os, call), []

    def wrapper(*arguments):
        target = os.readlink(f"/proc/self/fd/{arguments[0]}") if call == "fsync" else arguments[1]
        calls.extend([target] if Path(target).name == name else [])
        if len(calls) == count:
            os._exit(9)
        return original(*arguments)

    return wrapper


if __name__ == "__main__":
    call, name, count, *words = sys.argv[1:]
    setattr(os, call, dying(call, name, int(count)))
    sys.argv = [str(TRAIN), *words]
    sys.path[0] = str(TRAIN.parent)
    runpy.run_path(str(TRAIN), run_name="__main__")
