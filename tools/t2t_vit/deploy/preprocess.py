"""The evaluation transform of a model as one callable, for use with `paddle.vision` and `paddle.io`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.config import default_config, load_config, with_keys, with_open_keys
from t2t_vit.data.images import convert_image, load_image, reading
from t2t_vit.data.transforms import EvalTransform, model_input
from t2t_vit.deploy.engines import engine_of
from t2t_vit.models.zoo import list_models
from t2t_vit.weights import checkpoint, published
from t2t_vit.weights.download import local_file
from t2t_vit.weights.model_config import with_model_of

_OPEN = {"MODEL.NAME": "", "DATA.CHANNELS": 0, "DATA.IMAGE_SIZE": 0, "DATA.MEAN": [], "DATA.STD": []}


class Preprocess:
    """Prepares a picture for a model as predict.py does: path or PIL image -> float32 (channels, S, S), normalised.

    It is a function of one picture, so `paddle.vision.datasets.ImageFolder(folder, transform=...)` takes it.
    DATA.EXIF auto rotates a picture as its EXIF data say; `cfg` is the config that it follows.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.transform, self.reading = cfg, EvalTransform(cfg), reading(cfg, by_hand=True)

    def __call__(self, picture: str | Path | Image.Image) -> np.ndarray:
        """Raises ImageError, a UserError, if the picture cannot be read; TypeError if it is no path and no image."""
        if not isinstance(picture, (str, Path, Image.Image)):
            raise TypeError(f"a path or a PIL image is needed, not {type(picture).__name__}")
        read = convert_image if isinstance(picture, Image.Image) else load_image
        pixels = self.transform(read(picture, **self.reading))  # (S, S, channels)
        return model_input(pixels[None], self.cfg.DATA.MEAN, self.cfg.DATA.STD)[0]


def preprocess(source: str | Path | CfgNode) -> Preprocess:
    """Return the evaluation transform of a model.

    Args:
        source: a name of `list_models()` or of published weights, whose config in configs/ is read; a weights file or
            URL, with the config.yaml beside it or else the size and channels of its tensors; a config file, or the
            result of `load_config`.

    Raises:
        UserError: there is no such file or config, or it is an exported model. One line.
        TypeError: `source` is something else, such as a model.
    """
    return Preprocess(_config_of(source))


def _config_of(source):
    if isinstance(source, CfgNode):
        return with_open_keys(source, {})
    if not isinstance(source, (str, Path)):
        kinds = "a name, a file, a URL or the result of load_config"
        raise TypeError(f"preprocess needs {kinds}, not {type(source).__name__}")
    word = str(source)
    if word.endswith((".yaml", ".yml")):
        return with_open_keys(load_config(word), {})
    configs = {
        **{name: name for name in list_models()},
        **{name: row.config for name, row in published.table().items()},
    }
    if word in configs and not Path(word).is_file():
        return load_config(f"configs/{configs[word]}.yaml")
    if engine_of(word) != "paddle":
        raise UserError(f"{word} is an exported model: give the weights that it was exported from")
    path = local_file(word, "give a name of list_models(), weights or a config", Path.cwd())
    beside = path.with_name("config.yaml")
    if beside.is_file() and checkpoint.is_own(path):
        return with_model_of(load_config(beside), path)
    return _config_of_tensors(path)


def _config_of_tensors(path):
    """Return the config of the variant that the weights fit, with the size and channels of their tensors."""
    found = with_model_of(with_keys(default_config(), _OPEN), path)
    of_input = {f"DATA.{key}": found.DATA[key] for key in ("CHANNELS", "IMAGE_SIZE", "MEAN", "STD")}
    of_input["MODEL.T2T.TOKENS_TYPE"] = found.MODEL.T2T.TOKENS_TYPE
    return with_keys(load_config(f"configs/{found.MODEL.NAME}.yaml"), of_input)
