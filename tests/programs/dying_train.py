"""Run tools/train.py, kill it repeatedly, then let it finish: dying_train.py DEATHS WORDS.

DEATHS is a JSON list of [CALL, NAME, COUNT]. For each, a process trains until it ends, as if killed, before the call
number COUNT of replace (files take their names by it) or fsync (lines are written by then) for a file or folder called
NAME. The processes are forked from this one, which saves the import of Paddle.
"""

import json
import os
import runpy
import sys
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[2] / "tools/train.py"


def dying(call, name, count):
    """Return a replacement of os.`call` that ends the process instead of its call number `count` for `name`."""
    original, calls = getattr(os, call), []

    def wrapper(*arguments):
        target = os.readlink(f"/proc/self/fd/{arguments[0]}") if call == "fsync" else arguments[1]
        calls.extend([target] if Path(target).name == name else [])
        if len(calls) == count:
            os._exit(9)
        return original(*arguments)

    return wrapper


def main(deaths, words):
    sys.path[0] = str(TRAIN.parent)
    from t2t_vit.cli import import_paddle

    import_paddle("cpu")
    import t2t_vit.training.run  # noqa: F401

    for death in [*deaths, None]:
        child = os.fork()
        if not child:
            if death:
                setattr(os, death[0], dying(*death))
            sys.argv = [str(TRAIN), *words]
            runpy.run_path(str(TRAIN), run_name="__main__")  # ends in SystemExit
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != (9 if death else 0):
            sys.exit(f"{death}: the process ended with {status}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
