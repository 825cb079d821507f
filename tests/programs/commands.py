"""Runs commands in one process, for test_paddle_2.py: each line of stdin is a JSON list, [script, word, ...].

The answers, [status, stdout, stderr], are lines in the file descriptor that the argument gives.
"""

import json
import os
import sys
from pathlib import Path

tests = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(tests.parent / "tools"), str(tests)]
from t2t_vit import cli  # noqa: E402

cli.import_paddle("cpu")
import in_process  # noqa: E402

with open(int(sys.argv[1]), "w") as answers:
    for line in sys.stdin:
        script, *words = json.loads(line)
        done = in_process.run(script, words, os.getcwd())
        print(json.dumps([done.returncode, done.stdout, done.stderr]), file=answers, flush=True)
