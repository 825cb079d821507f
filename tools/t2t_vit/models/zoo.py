"""All models by name. A new family is one module in this package and one entry in FAMILIES."""

import difflib
from typing import Any

from t2t_vit.models import pit, t2t
from t2t_vit.models.family import Family, VisionTransformer

FAMILIES = [t2t.FAMILY, pit.FAMILY]


def list_models() -> list[str]:
    """List the names that `create_model` accepts, family by family."""
    return [name for family in FAMILIES for name in family.variants]


def family_of(name: str) -> Family:
    """Return the `Family` of a model name.

    Raises:
        ValueError: the name is unknown. The message suggests similar names.
    """
    for family in FAMILIES:
        if name in family.variants:
            return family
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list_models(), n=3) or list_models()
    raise ValueError(f"unknown model {name!r}; did you mean {', '.join(near)}?")


def create_model(name: str, **overrides: Any) -> VisionTransformer:
    """Build a model with fresh weights.

    Args:
        name: one of `list_models()`.
        overrides: constructor arguments that override the variant's: num_classes (0: the model returns features),
            image_size, in_chans, drop_rate, attn_drop_rate, drop_path_rate, qk_scale, and the arguments of the family
            (`T2TViT`, `PoolingTransformer`).

    Returns:
        A `paddle.nn.Layer`: (B, in_chans, H, W) float -> (B, num_classes) logits. In training mode, a distilled PiT
        returns two logits: (class, distillation).

    Raises:
        ValueError: the name is unknown (the message suggests similar ones), or arguments do not fit together.
    """
    family = family_of(name)
    return family.model(**{**family.variants[name], **overrides})
