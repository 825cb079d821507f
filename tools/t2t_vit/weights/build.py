"""Build the model that a config names, with or without weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.config import best_weights, class_list, resolve, with_classes
from t2t_vit.data.classes import ClassList, read_classes
from t2t_vit.models.family import VisionTransformer
from t2t_vit.models.layers import fuse_attention
from t2t_vit.models.zoo import create_model, family_of
from t2t_vit.weights.download import local_file
from t2t_vit.weights.formats import read_weights
from t2t_vit.weights.load import count_classes, load_weights


def build_model(cfg: CfgNode, num_classes: int | None = None) -> VisionTransformer:
    """Build the model of MODEL.* with fresh weights. The DATA keys determine the shape of its input.

    `num_classes` is used instead of MODEL.NUM_CLASSES; 0 for a model without a head, which returns pooled features.

    Raises UserError for an unknown name or settings that do not fit together.
    """
    model = cfg.MODEL
    require_model(cfg)
    num_classes = model.NUM_CLASSES or None if num_classes is None else num_classes
    if num_classes is None:
        raise UserError("MODEL.NUM_CLASSES is 0 (as in the data set or the weights), but neither is given; set it")
    try:
        overrides = model_overrides(model)
        network = create_model(
            model.NAME,
            image_size=cfg.DATA.IMAGE_SIZE,
            in_chans=cfg.DATA.CHANNELS,
            num_classes=num_classes,
            drop_rate=model.DROP_RATE,
            attn_drop_rate=model.ATTN_DROP_RATE,
            drop_path_rate=model.DROP_PATH_RATE,
            qk_scale=model.QK_SCALE or None,
            **overrides,
        )
        if model.FUSED_ATTENTION:
            fuse_attention(network)
        return network
    except ValueError as error:
        raise UserError(f"MODEL.NAME {model.NAME}: {error}") from error


def require_model(cfg: CfgNode) -> None:
    """Raise UserError if the config leaves the model to weights that are not given."""
    if not cfg.MODEL.NAME:
        raise UserError(
            "MODEL.NAME is empty and no weights choose the model: set MODEL.NAME, or add --pretrained FILE to train, "
            "val, predict, export or visualize"
        )


def model_overrides(model: CfgNode) -> dict[str, Any]:
    """Return constructor arguments from the section of the model's family. UserError if another section is set."""
    family, variant = family_of(model.NAME).name, family_of(model.NAME).variants[model.NAME]
    sections = {key: section for key, section in model.items() if isinstance(section, dict)}
    for name, section in sections.items():
        for key, value in section.items():
            if value and name != family:
                raise UserError(f"MODEL.{name}.{key} is {value!r}, but MODEL.NAME {model.NAME} is a {family}")
    given = {key.lower(): value for key, value in sections.get(family, {}).items() if value}
    # Blocks of another kind than the variant's do not take its depth, or its stages and growth rate: 0 and ().
    unfit = ("depth",) if given.get("block", variant.get("block")) == "dense" else ("stages", "growth_rate")
    return {**{key: type(variant[key])() for key in unfit if key in variant}, **given}


def trained_weights(cfg: CfgNode, chosen: str | Path | None) -> Path:
    """Return the path of the weights to use with a config. Raises UserError if there are none.

    Args:
        chosen: file, URL or published name; default: best.pdparams of the config's run (the user's own, or the one that
            comes with the repository), or else MODEL.PRETRAINED.
    """
    best = best_weights(cfg)
    return local_file(chosen or (best if best.is_file() or not cfg.MODEL.PRETRAINED else cfg.MODEL.PRETRAINED))


def build_trained_model(
    cfg: CfgNode, chosen: str | Path | None, with_head: bool = True
) -> tuple[VisionTransformer, Path]:
    """Build the model of `cfg` with weights, see `trained_weights`. Returns (model in eval mode, path of the weights).

    Without its head, the model returns pooled features, and the weights need no head.

    Raises UserError if there are no weights, or if they do not fit.
    """
    path = trained_weights(cfg, chosen)
    weights = read_weights(path)
    if with_head and not cfg.MODEL.NUM_CLASSES:
        cfg = with_classes(cfg, count_classes(weights))
    model = build_model(cfg, num_classes=None if with_head else 0)
    load_weights(model, weights, head="same" if with_head else "fit", pos_resize=cfg.MODEL.POS_RESIZE)
    model.eval()
    return model, path


def classes_of(cfg: CfgNode, weights: Path) -> ClassList:
    """Return the `ClassList` of a model.

    It is read from classes.txt beside the weights, else DATA.CLASSES, else classes.txt of the data set. Without
    any of these, classes are numbers.

    Raises UserError if the list and the model differ in the number of classes.
    """
    candidates = [weights.with_name("classes.txt"), resolve(cfg.DATA.PATH) / "classes.txt"]
    if path := class_list(cfg):
        candidates.insert(1, path)
    for path in candidates:
        if path.is_file():
            classes = read_classes(path)
            if len(classes) != cfg.MODEL.NUM_CLASSES:
                raise UserError(f"{path} lists {len(classes)} classes but {weights} has {cfg.MODEL.NUM_CLASSES}")
            return classes
    numbers = tuple(str(i) for i in range(cfg.MODEL.NUM_CLASSES))
    return ClassList(numbers, numbers, "MODEL.NUM_CLASSES")


def first_other_class(classes: ClassList, weights: Path) -> str | None:
    """Return `first_difference` of `classes` and the classes.txt beside the weights; None without that file."""
    theirs = classes_beside(weights)
    return first_difference(classes, theirs) if theirs else None


def classes_beside(weights: Path) -> ClassList | None:
    """Read the `ClassList` beside a weights file, or return None."""
    path = weights.with_name("classes.txt")
    return read_classes(path) if path.is_file() else None


def refuse_other_order(classes: ClassList, others: ClassList) -> None:
    """Raise UserError if two `ClassList`s have the same classes in different orders, because ids would be swapped."""
    if (other := first_difference(classes, others)) and sorted(classes.folders) == sorted(others.folders):
        raise UserError(
            f"{other}: the same classes in another order; set DATA.CLASSES to the classes.txt of the model's run"
        )


def first_difference(classes: ClassList, others: ClassList) -> str | None:
    """Describe the first class that differs in two `ClassList`s. None if they are equal or one has only numbers."""
    if "MODEL.NUM_CLASSES" in (classes.source, others.source):
        return None
    for number, (ours, theirs) in enumerate(zip(classes.folders, others.folders)):
        if ours != theirs:
            return f"class {number} is {ours} in {classes.source} but {theirs} in {others.source}"
    return None
