"""Code style: sizes of files and functions, imports, docstrings of packages."""

import ast
import re

import pytest
import session
from conftest import ROOT

TOOLS = ROOT / "tools"
PACKAGE = TOOLS / "t2t_vit"
SOURCES = sorted(TOOLS.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

LONG_FILES = {}  # {"path": reason}
LONG_FUNCTIONS = {}  # {"path:name": reason}


def name_of(path):
    return path.relative_to(TOOLS).as_posix()


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path):
    return [node for node in ast.walk(parse(path)) if isinstance(node, FUNCTIONS)]


def assert_none(offenders):
    offenders = list(offenders)
    assert not offenders, "\n" + "\n".join(offenders)


def test_no_file_is_over_300_lines():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert_none(f"{name}: {count} lines" for name, count in lines.items() if count > 300 and name not in LONG_FILES)


def test_no_function_is_over_40_lines():
    """The body, without the arguments and the docstring; `main` may be longer."""
    offenders = []
    for path in SOURCES:
        for node in functions(path):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            count = node.end_lineno - body[0].lineno + 1 if body else 0
            name = f"{name_of(path)}:{node.name}"
            if count > 40 and node.name != "main" and name not in LONG_FUNCTIONS:
                offenders.append(f"{name}: {count} lines")
    assert_none(offenders)


def is_command_start(path, function, imports):
    """True for the `main` of a command with one import: the function that does the work, which imports paddle."""
    return path.parent == TOOLS and function.name == "main" and len(imports) == 1


def optional_imports(function):
    """Imports in a `try` that expects an ImportError."""
    tries = [node for node in ast.walk(function) if isinstance(node, ast.Try)]
    return {
        node
        for attempt in tries
        if any(handler.type and "ImportError" in ast.unparse(handler.type) for handler in attempt.handlers)
        for node in attempt.body
    }


def test_imports_inside_functions_have_a_reason():
    """In a comment on the line, or for several in a row on the first of them or above it."""
    offenders = []
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for function in functions(path):
            imports = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
            inside = {number for node in imports for number in range(node.lineno, node.end_lineno + 1)}
            for node in set(imports) - optional_imports(function):
                first = node.lineno
                while first - 1 in inside:
                    first -= 1
                has_reason = any("#" in line for line in (lines[node.lineno - 1], lines[first - 1], lines[first - 2]))
                if not has_reason and not is_command_start(path, function, imports):
                    offenders.append(f"{name_of(path)}:{node.lineno}")
    assert_none(offenders)


def test_package_imports_no_command():
    commands = {path.stem for path in TOOLS.glob("*.py")}
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parse(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            offenders += [f"{name_of(path)}:{node.lineno}" for name in names if name.split(".")[0] in commands]
    assert_none(offenders)


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_package_docstring_is_one_sentence(room):
    tree = parse(PACKAGE / room / "__init__.py")
    idea = ast.get_docstring(tree)
    assert len(tree.body) == 1 and re.fullmatch(r"[A-Z].*[^.!?]\.", idea, flags=re.DOTALL), idea
    assert not re.search(r"[.!?]\s+[A-Z]", idea), f"more than one sentence: {idea}"


@pytest.mark.skipif(not (ROOT / "docs/architecture.md").is_file(), reason="docs/architecture.md is not written yet")
def test_architecture_page_names_files_that_exist():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/.-]+\.(?:py|sh|md|yaml|txt|tsv)\b", text))
    folders = [ROOT, TOOLS, PACKAGE, ROOT / "docs", ROOT / "configs"]
    assert len(named) >= 10
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


def test_tests_that_may_be_skipped_exist():
    tests = {
        f"{path.name}::{node.name}" for path in (ROOT / "tests").glob("test_*.py") for node in parse(path).body
        if isinstance(node, FUNCTIONS)
    }  # fmt: skip
    assert_none(set(session.read_skipped()) - tests)


def test_skips_are_matched_by_name():
    names = ["test_a.py::test_x", "test_b.py"]
    assert session.may_be_skipped("test_a.py::test_x", names)
    assert session.may_be_skipped("test_a.py::test_x[1]", names)
    assert session.may_be_skipped("test_b.py::test_y", names)
    assert not session.may_be_skipped("test_a.py::test_xy", names)
