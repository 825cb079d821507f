"""T2T-ViT and PiT in PaddlePaddle: `import t2t_vit; model = t2t_vit.create_model("t2t_vit_14", num_classes=10)`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2t_vit.config import load_config as load_config
    from t2t_vit.deploy.preprocess import preprocess as preprocess
    from t2t_vit.models.zoo import list_models as list_models
    from t2t_vit.training.parameters import param_groups as param_groups
    from t2t_vit.weights.create import create_model as create_model

__version__ = "1.0.0"  # as in pyproject.toml

_PUBLIC = {  # name: its module
    "create_model": "weights.create",
    "list_models": "models.zoo",
    "load_config": "config",
    "param_groups": "training.parameters",
    "preprocess": "deploy.preprocess",
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    # Names are imported at first use, so that commands can parse their options before the slow import of paddle.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return __all__
