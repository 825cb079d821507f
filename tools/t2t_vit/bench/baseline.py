"""The rows of --baseline: the same models in PyTorch, timed in processes without Paddle."""

import importlib.util
from pathlib import Path

import paddle

from t2t_vit.bench.sweep import BASELINE, Subject
from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.models.zoo import family_of
from t2t_vit.weights.build import model_overrides

_MODULE = "t2t_vit.bench.torch_baseline"  # imports PyTorch; this module does not
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # CPU flags
_DENSE = ("stages", "growth_rate")  # arguments of a dense backbone only


class Baseline:
    """What --baseline adds to a benchmark. Raises UserError if PyTorch is not installed, or the device is not a CPU.

    Args:
        name: value of --baseline: "pytorch", or "" for none.
        is_training: whether training steps are timed, or inference.
    """

    def __init__(self, name, is_training):
        self.name, self.is_training = name, is_training
        if name and importlib.util.find_spec("torch") is None:
            raise UserError("--baseline pytorch needs PyTorch: pip install torch (the CPU build is enough)")
        if name and paddle.get_device() != "cpu":
            raise UserError("--baseline pytorch compares on a CPU: add --device cpu")

    def subjects(self, cfg):
        """Return the `Subject`s of a config: float32, and bfloat16 autocast if the CPU has it; or none."""
        if not self.name:
            return []
        family, arguments = torch_arguments(cfg)
        if not is_plain(arguments):
            log.info("%s: no PyTorch baseline for its blocks or tokens", cfg.NAME)
            return []
        precisions = ["fp32", "bf16"] if _BFLOAT16 & _cpu_flags() else ["fp32"]
        return [
            Subject(
                {"engine": BASELINE, "precision": precision},
                (family, arguments, cfg.TRAIN.BATCH_SIZE, self.is_training, precision),
                _MODULE,
            )
            for precision in precisions
        ]


def torch_arguments(cfg):
    """Return (name of the family, arguments of its class in `torch_baseline`) for the model of a config."""
    model, family = cfg.MODEL, family_of(cfg.MODEL.NAME)
    sizes = {"image_size": cfg.DATA.IMAGE_SIZE, "in_chans": cfg.DATA.CHANNELS, "num_classes": model.NUM_CLASSES}
    rates = {"drop": model.DROP_RATE, "attn_drop": model.ATTN_DROP_RATE, "drop_path": model.DROP_PATH_RATE}
    variant, scale = family.variants[model.NAME], {"qk_scale": model.QK_SCALE or None}
    given = {**variant, **scale, **sizes, **rates, **model_overrides(model)}
    return family.name, {name: value for name, value in given.items() if name not in _DENSE or value}


def is_plain(arguments):
    """Whether `torch_baseline` has the model: not the blocks of T2T-ViT-SE, -Ghost and -Dense."""
    tokens = arguments.get("tokens_type", "performer")
    is_known = arguments.get("block", "plain") == "plain" and tokens in ("performer", "transformer")
    return is_known and not any(name in arguments for name in _DENSE)


def _cpu_flags():
    path = Path("/proc/cpuinfo")
    return set(path.read_text().split()) if path.is_file() else set()
