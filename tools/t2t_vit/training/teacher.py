"""The teacher model of a distillation."""

import difflib
from pathlib import Path

import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path, sha256
from t2t_vit.config import default_config, load_config, resolve, with_keys
from t2t_vit.models.zoo import list_models
from t2t_vit.weights.build import build_model
from t2t_vit.weights.download import local_file
from t2t_vit.weights.load import load_pretrained
from t2t_vit.weights.published import table

_VISION_MODELS = [name for name in paddle.vision.models.__all__ if name.islower()]


class Teacher:
    """The model of DISTILL.*, frozen and in eval mode, for the student's images and classes.

    Raises UserError if the model is unknown, the weights are missing or do not fit, or the normalization differs.
    """

    def __init__(self, cfg):
        distill, data = cfg.DISTILL, cfg.DATA
        name = display_path(distill.TEACHER) if _is_config(distill.TEACHER) else distill.TEACHER
        self.weights = weights_path(cfg)  # file of the weights
        self.model = _build(cfg)
        try:
            load_pretrained(self.model, self.weights, pos_resize=cfg.MODEL.POS_RESIZE)
        except UserError as error:
            classes = f"it must have the student's {cfg.MODEL.NUM_CLASSES} classes"
            raise UserError(f"DISTILL.TEACHER {name}, {classes}: {error}") from error
        self.model.eval()
        try:
            self(paddle.zeros([1, data.CHANNELS, data.IMAGE_SIZE, data.IMAGE_SIZE]))
        except ValueError as error:
            size = f"{data.IMAGE_SIZE}x{data.IMAGE_SIZE}"
            raise UserError(f"DISTILL.TEACHER {name} cannot take images of {size} pixels") from error
        tau = f", temperature {distill.TAU:g}" if distill.TYPE == "soft" else ""
        self.summary = (
            f"teacher {name} with {display_path(self.weights)}: {distill.TYPE}, {distill.ALPHA:g} of the loss{tau}"
        )

    @paddle.no_grad()
    def __call__(self, images):
        """Compute the logits: (B, C, H, W) -> (B, K), without gradients."""
        outputs = self.model(images)
        return outputs[0] if isinstance(outputs, (list, tuple)) else outputs  # GoogLeNet returns two more outputs


def weights_path(cfg):
    """Return the file of the teacher's weights. Raises UserError if the file or the teacher does not exist."""
    distill = cfg.DISTILL
    _check_name(distill.TEACHER)
    if not distill.WEIGHTS and not _is_config(distill.TEACHER):
        named = f", or to {distill.TEACHER} for the published ones" if distill.TEACHER in table() else ""
        raise UserError(f"DISTILL.TEACHER is {distill.TEACHER}: set DISTILL.WEIGHTS to the file of its weights{named}")
    choice = distill.WEIGHTS or Path(distill.TEACHER).with_name("best.pdparams")
    return local_file(choice, "set DISTILL.WEIGHTS to the file of the teacher's weights")


def checksum(cfg):
    """Return a checksum of the teacher's weights; "" without a teacher."""
    return sha256(weights_path(cfg))[:16] if cfg.DISTILL.TYPE else ""


def _is_config(teacher):
    return teacher.endswith((".yaml", ".yml"))


def _check_name(teacher):
    known = list_models() + _VISION_MODELS
    if _is_config(teacher) and not resolve(teacher).is_file():
        raise UserError(f"DISTILL.TEACHER: config {resolve(teacher)} not found")
    if not _is_config(teacher) and teacher not in known:
        near = difflib.get_close_matches(teacher, known, n=3) or ["t2t_vit_24", "resnet50"]
        hint = f"did you mean {', '.join(near)}? To use a run, give its config.yaml"
        raise UserError(f"DISTILL.TEACHER: unknown model {teacher}; {hint}")


def _build(cfg):
    """Build the teacher for the student's images and classes, with fresh weights."""
    teacher, data = cfg.DISTILL.TEACHER, cfg.DATA
    shape = {"MODEL.NUM_CLASSES": cfg.MODEL.NUM_CLASSES, "DATA.IMAGE_SIZE": data.IMAGE_SIZE}
    if _is_config(teacher):
        own = load_config(resolve(teacher))  # a relative path starts at the repository, as for the weights
        for key in ("CHANNELS", "MEAN", "STD"):
            if own.DATA[key] != data[key]:
                raise UserError(f"DISTILL.TEACHER {teacher} has DATA.{key} {own.DATA[key]}, the student {data[key]}")
        return build_model(with_keys(own, shape))
    if teacher in list_models():
        pixels = {f"DATA.{key}": data[key] for key in ("CHANNELS", "MEAN", "STD")}
        return build_model(with_keys(default_config(), {**shape, **pixels, "MODEL.NAME": teacher}))
    if data.CHANNELS != 3:
        raise UserError(f"DISTILL.TEACHER {teacher} takes RGB images, but DATA.CHANNELS is {data.CHANNELS}")
    return getattr(paddle.vision.models, teacher)(num_classes=cfg.MODEL.NUM_CLASSES)
