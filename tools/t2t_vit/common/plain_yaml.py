"""Read YAML files from untrusted sources: plain data only, and no aliases that multiply it."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import yaml

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import read_text

_MAX_CHARACTERS = 10_000  # of one value; a number in base 60 takes quadratic time
_MAX_VALUES = 1_000_000  # counting repeats through aliases


class _Limits:
    """Refuses long values and duplicate keys. By default, the last of duplicate keys would win silently."""

    def construct_scalar(self, node):
        if len(node.value) > _MAX_CHARACTERS:
            raise yaml.YAMLError(f"a value has more than {_MAX_CHARACTERS:,} characters")
        return super().construct_scalar(node)

    def construct_mapping(self, node, deep=False):
        counts = collections.Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return super().construct_mapping(node, deep)


class _Loader(_Limits, yaml.SafeLoader):
    pass


class _FastLoader(_Limits, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A loader that is ten times faster, for files written by programs. It cannot read `{KEY:}`."""


def load_yaml(text: str, fast: bool = False) -> Any:
    """Parse a YAML text. Raises ValueError with a message of one line."""
    try:
        tree = yaml.load(text, Loader=_FastLoader if fast else _Loader)
        _check(tree)
    except Exception as error:  # int, float and datetime raise other errors for odd values
        raise ValueError(" ".join(str(error).split())[:500] or type(error).__name__) from None
    return tree


def read_config(path: Path) -> dict:
    """Read a config file, nested mappings of KEY: value. Raises UserError naming the file."""
    if path.suffix not in (".yaml", ".yml"):  # yacs would execute a .py file
        raise UserError(f"config {path} is not YAML: its name must end in .yaml or .yml")
    try:
        tree = load_yaml(read_text(path, 2**16))
    except ValueError as error:
        raise UserError(f"config {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config {path} must contain KEY: value pairs")
    return tree


def _check(tree):
    """Refuse aliases that refer to themselves or expand to very many values, and huge numbers."""
    rest, count = [tree], 0
    while rest:
        value = rest.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(f"it refers to itself, or expands to more than {_MAX_VALUES:,} values")
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            rest.extend(value)
        elif isinstance(value, int) and value.bit_length() > 256:
            raise ValueError("a number has more than 256 bits")
