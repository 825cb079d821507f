"""Types at the borders of the rooms: what one room calls in another is annotated, and mypy finds no wrong type."""

import ast
import functools
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import t2t_vit

TOOLS = ROOT / "tools"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
FILES = {
    ".".join(path.relative_to(TOOLS).with_suffix("").parts).replace(".__init__", ""): path
    for path in TOOLS.rglob("*.py")
}  # {module: path}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
IN_TEXT = re.compile(r"(t2t_vit[\w.]*):(\w+)")  # as in `Family.fold`


def room(module):
    """A room, a file beside the rooms, or a command. All names of the package itself are for users."""
    parts = module.split(".")
    return parts[1] if parts[0] == "t2t_vit" and len(parts) > 1 else module


def imported(module):
    """{local name: (module, name in it)}; the name is None for a module."""
    found = {}
    for node in ast.walk(TREES[module]):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            whole = f"{node.module}.{alias.name}"
            if whole in TREES or node.module in TREES:
                found[alias.asname or alias.name] = (whole, None) if whole in TREES else (node.module, alias.name)
    return found


def from_other_rooms(module):
    """Yield the (module, name) pairs of other rooms that a module uses."""
    for local, (source, name) in imported(module).items():
        if room(source) != room(module):
            uses = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute))
            names = [name] if name else {node.attr for node in uses if ast.unparse(node.value) == local}
            yield from ((source, each) for each in names)
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (match.groups() for match in IN_TEXT.finditer(node.value) if match[1] in TREES)


def definition(module, name):
    """(module, node) of a function or class, also if `module` only imports it; None for anything else."""
    for node in TREES[module].body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name == name:
            return module, node
    source, name = imported(module).get(name, (None, None))
    return definition(source, name) if name else None


def public_functions(node):
    """A function itself; the constructor, public methods and operators of a class. Pairs (name, function)."""
    if isinstance(node, FUNCTIONS):
        return [(node.name, node)]
    methods = [each for each in node.body if isinstance(each, FUNCTIONS)]
    return [(f"{node.name}.{each.name}", each) for each in methods if not re.match(r"_(?!_)", each.name)]


def arguments(function):
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [argument for argument in every if argument and argument.arg not in ("self", "cls")]


def unannotated(function):
    """Names of the arguments without a type, and "return"."""
    names = [argument.arg for argument in arguments(function) if not argument.annotation]
    return names + ["return"] * (not function.returns)


@functools.cache
def borders():
    """{(module, name): function} that another room or a user calls, with the classes that their types name."""
    waiting, found, seen = [pair for module in TREES for pair in from_other_rooms(module)], {}, set()
    while waiting:
        place = definition(*waiting.pop())
        if not place or place in seen:
            continue
        seen.add(place)
        module, node = place
        for name, function in public_functions(node):
            found[module, name] = function
            types = [argument.annotation for argument in arguments(function)] + [function.returns]
            words = {word for each in types if each for word in re.findall(r"\b[A-Z]\w+", ast.unparse(each))}
            waiting += [(module, word) for word in words]
    return found


@pytest.mark.parametrize(
    "module, name",
    [
        ("config", "load_config"),  # a function, imported by name
        ("common.ranks", "is_main"),  # called as processes.is_main, which imports it
        ("parallel.processes", "barrier"),  # called as processes.barrier
        ("data.loader", "EvalLoader.__iter__"),  # a method
        ("deploy.engines", "Predictor.__call__"),  # of an attribute of the result of open_model
        ("deploy.fold", "fold_pit"),  # named in a text
        ("models.zoo", "list_models"),  # for users
    ],
)
def test_borders_are_found(module, name):
    assert (f"t2t_vit.{module}", name) in borders()


def test_borders_are_annotated():
    lines = [
        f"{FILES[module].relative_to(ROOT)}:{function.lineno}: {name} needs the type of {', '.join(missing)}"
        for (module, name), function in borders().items()
        if (missing := unannotated(function))
    ]
    assert not lines, "\n" + "\n".join(lines)


def test_missing_types_are_found():
    (function,) = ast.parse("def f(a, b: int, *c, d=1, e: str = '', **g): pass").body
    assert unannotated(function) == ["a", "c", "d", "g", "return"]


def test_users_names_are_those_that_the_package_offers():
    assert {name for source, name in from_other_rooms("t2t_vit")} == set(t2t_vit.__all__)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="mypy needs Python 3.10")
def test_mypy_finds_wrong_types_and_only_where_they_are(tmp_path):
    wrong = "tests/programs/wrong_types.py"
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, "--hide-error-context", "tools", wrong]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert not [line for line in errors if not line.startswith(wrong)], done.stdout + done.stderr
    lines = (ROOT / wrong).read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, start=1) if "# wrong: " in line}
    assert {int(line.split(":")[1]) for line in errors} == marked, done.stdout + done.stderr
