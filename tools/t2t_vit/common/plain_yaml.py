"""YAML files that may come from a stranger: plain data only, limited in depth and size."""

import yaml

_MAX_DEPTH = 50
_MAX_CHARACTERS = 10_000  # of one value
_MAX_VALUES = 1_000_000  # a value that aliases repeat counts each time


class _UniqueKeys:
    """Refuses a key that is given twice; YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.YAMLError(f"{key.value} is given twice, the first time {node.start_mark}")
            keys.add(str(key.value) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _Loader(_UniqueKeys, yaml.SafeLoader):
    pass


class _FastLoader(_UniqueKeys, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A loader ten times as fast, for files written by programs. It cannot read `{KEY:}`, which people type by hand."""


def load_yaml(text, fast=False):
    """Parse a YAML text. Raises ValueError with a message of one line."""
    loader = _FastLoader if fast else _Loader
    try:
        _check_text(text, loader)
        tree = yaml.load(text, Loader=loader)
        _check_tree(tree)
    except Exception as error:  # also from int, float and datetime, at odd values
        raise ValueError(" ".join(str(error).split())[:500] or type(error).__name__) from None
    return tree


def _check_text(text, loader):
    """Refuse deep nesting, which overflows the C stack, and long values, which take long to parse."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_CHARACTERS:
            raise ValueError(f"a value has more than {_MAX_CHARACTERS:,} characters")


def _check_tree(tree):
    """Refuse aliases that repeat each other or themselves, and huge numbers."""
    rest, count = [tree], 0
    while rest:
        value = rest.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(f"it refers to itself, or stands for more than {_MAX_VALUES:,} values")
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            rest.extend(value)
        elif isinstance(value, int) and value.bit_length() > 256:
            raise ValueError("a number has more than 256 bits")
