"""Entry points for `paddle.hub`: `paddle.hub.load(REPOSITORY, "t2t_vit_14", source="local", pretrained=...)`.

Each model of `t2t_vit.list_models()` is one. Every name here that does not begin with _ and can be called is listed.
"""

import importlib.util
import sys
from pathlib import Path as _Path

dependencies = ["paddle", "numpy", "yacs", "yaml", "PIL", "tqdm", "httpx"]


def _package():
    """Import tools/t2t_vit without tools/ on sys.path, where its train.py and val.py would hide other modules."""
    if "t2t_vit" not in sys.modules:
        file = _Path(__file__).resolve().parent / "tools/t2t_vit/__init__.py"
        spec = importlib.util.spec_from_file_location("t2t_vit", file)
        sys.modules["t2t_vit"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["t2t_vit"])
    return sys.modules["t2t_vit"]


def _entry(name):
    def entry(pretrained=None, num_classes=None, **overrides):
        return _package().create_model(name, pretrained=pretrained, num_classes=num_classes, **overrides)

    entry.__name__ = name
    entry.__doc__ = f"""Build a {name}.

    Args:
        pretrained: weights: a file, a URL, the name of published weights, or True for those of {name}.
        num_classes: width of the logits; 0 for a model that returns its features. Default: as the weights have it, or
            1000 without weights.
        overrides: image_size, in_chans, drop_rate, ...: docs/python.md lists them.

    Returns:
        A `paddle.nn.Layer`: (B, in_chans, H, W) float -> (B, num_classes) logits.
    """
    return entry


globals().update({name: _entry(name) for name in _package().list_models()})
