"""Complete a config that leaves the model and its input to the weights (`config.OPEN_KEYS`)."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, counted
from t2t_vit.common.files import display_path
from t2t_vit.common.logger import log
from t2t_vit.config import leaves_open, load_config, with_open_keys
from t2t_vit.config_values import leaves
from t2t_vit.weights import checkpoint
from t2t_vit.weights.formats import read_weights
from t2t_vit.weights.identify import closest, identify


def with_model_of(cfg: CfgNode, path: Path) -> CfgNode:
    """Return the config with the keys that it leaves open as the weights in `path` have them. Logs where they are from.

    They come from the config.yaml beside the weights, or else from the shapes of the tensors. Raises UserError if no
    variant has these shapes.
    """
    if not leaves_open(cfg):
        return cfg  # without reading the weights
    source = path.with_name("config.yaml")
    values = _values_beside(source, path)
    if not values:
        source, values = path, _values_of_tensors(cfg, path)
    settled = with_open_keys(cfg, values)
    data = settled.DATA
    log.info(
        "model %s for %s of %dx%d pixels, as in %s",
        settled.MODEL.NAME, counted(data.CHANNELS, "channel"), data.IMAGE_SIZE, data.IMAGE_SIZE, display_path(source),
    )  # fmt: skip
    return settled


def _values_beside(config, weights):
    """Return {key: value} of the config.yaml beside weights of this program, or {}."""
    return dict(leaves(load_config(config))) if config.is_file() and checkpoint.is_own(weights) else {}


def _values_of_tensors(cfg, path):
    weights = read_weights(path)
    candidates = identify(weights.shapes)
    names = [name for name in (cfg.MODEL.NAME, weights.variant) if name in candidates] or closest(candidates)
    if not names and not cfg.MODEL.NAME:
        raise UserError(
            f"{path} ({weights.form}) fits no variant: set MODEL.NAME and what differs from it, or put the config.yaml "
            "of its run beside it"
        )
    name = cfg.MODEL.NAME or names[0]  # of variants with equal shapes, the first is the one with published weights
    input_of = candidates.get(name, {})
    if input_of.get("in_chans") not in (None, 1, 3):
        raise UserError(f"{path} has {input_of['in_chans']} input channels, but images have 3 (RGB) or 1 (grey)")
    values = {"DATA.CHANNELS": input_of.get("in_chans"), "DATA.IMAGE_SIZE": input_of.get("image_size"),
              "MODEL.T2T.TOKENS_TYPE": input_of.get("tokens_type")}  # fmt: skip
    return {"MODEL.NAME": name, **{key: value for key, value in values.items() if value}}
