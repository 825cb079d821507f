"""Change a source file in one place at a time and list the changes that its tests do not notice.

python tests/programs/mutate.py tools/t2t_vit/training/ema.py tests/test_train_step.py -k average [option of pytest ...]

Works on a copy of the repository. Each change runs the tests in a fork of a process that has imported their packages.
"""

import ast
import contextlib
import gc
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutations(tree):
    """Yield (line, old code, new code, mutated module); the tree is as before after each."""
    for node in ast.walk(tree):
        for owner, name, new in changes(node):
            old, before = getattr(owner, name), ast.unparse(node)
            setattr(owner, name, new)
            yield node.lineno, before, ast.unparse(node), ast.unparse(tree)
            setattr(owner, name, old)


def changes(node):
    """Yield (object, attribute, new value) of each change in one node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        yield node, "op", SWAPS[type(node.op)]()
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield node, "value", not node.value if isinstance(node.value, bool) else node.value + 1
    if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not _is_negated_by_a_swap(node.test):
        yield node, "test", ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield node, "value", ast.Constant(None)


def _is_negated_by_a_swap(test):
    return isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In))


def run_tests(words, packages=os.devnull):
    """Exit status of pytest in a fork of this process. Writes which modules of installed packages it imported."""
    child = os.fork()
    if not child:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        words = ["-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--timeout=60", *words]
        status = pytest.main(words)
        files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
        Path(packages).write_text("\n".join(name for name, file in files.items() if "site-packages" in str(file)))
        os._exit(int(status))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(source, *words):
    sys.dont_write_bytecode = False
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder  # pytest deletes older folders of tests beside its own
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv", ".pytest_cache"))
        os.chdir(copy)
        path = copy / source
        text = path.read_text(encoding="utf-8")
        packages = Path(folder) / "packages"
        if run_tests(words, packages):
            sys.exit("the tests fail without a change")
        for name in packages.read_text().split():
            with contextlib.suppress(Exception):  # some are not for import by themselves
                importlib.import_module(name)
        gc.freeze()
        counts = [0, 0]
        for number, (line, old, new, module) in enumerate(mutations(ast.parse(text)), start=1):
            path.write_text(module, encoding="utf-8")
            os.utime(path, (number, number))  # Python would take a change within a second for the file before
            survives = run_tests(words) == 0
            counts[survives] += 1
            if survives:
                print(f"{source}:{line}: {old.splitlines()[0]}  ->  {new.splitlines()[0]}", flush=True)
        print(f"{source}: {counts[0]} changes noticed, {counts[1]} not", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
