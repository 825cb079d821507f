"""YAML that a stranger may have written: plain data, and no small text that stands for a large tree."""

import yaml

_DEEPEST = 50
_LONGEST = 10_000  # characters of a value
_MOST = 1_000_000  # values, with those that aliases repeat


class _Strict:
    """Refuses a key that is given twice, of which YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.YAMLError(f"{key.value} is given twice, the first time {node.start_mark}")
            keys.add(str(key.value) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _Loader(_Strict, yaml.SafeLoader):
    pass


class _FastLoader(_Strict, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """For files of programs: ten times as fast, but it does not know the `{KEY:}` that people write."""


def load_yaml(text, fast=False):
    """What a YAML text holds. Raises ValueError in one line."""
    loader = _FastLoader if fast else _Loader
    try:
        _check_text(text, loader)
        tree = yaml.load(text, Loader=loader)
        _check_tree(tree)
    except Exception as error:  # PyYAML lets through what int, float and datetime raise at odd values
        raise ValueError(" ".join(str(error).split())[:500] or type(error).__name__) from None
    return tree


def _check_text(text, loader):
    """Refuse what takes the loader long, or too deep for the C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST:
            raise ValueError(f"a value has more than {_LONGEST:,} characters")


def _check_tree(tree):
    """Refuse aliases that repeat each other, or themselves, and numbers that no setting has."""
    rest, count = [tree], 0
    while rest:
        value = rest.pop()
        count += 1
        if count > _MOST:
            raise ValueError(f"it refers to itself, or stands for more than {_MOST:,} values")
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            rest.extend(value)
        elif isinstance(value, int) and value.bit_length() > 256:
            raise ValueError("a number has more than 256 bits")
