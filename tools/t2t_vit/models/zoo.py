"""All models by name. A new family is one module of this room and one entry in FAMILIES."""

import difflib

from t2t_vit.models import pit, t2t

FAMILIES = [t2t.FAMILY, pit.FAMILY]


def list_models():
    """Names that `create_model` takes, in the order of their families' tables."""
    return [name for family in FAMILIES for name in family.variants]


def family_of(name):
    """The `Family` of one of `list_models()`.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    for family in FAMILIES:
        if name in family.variants:
            return family
    near = difflib.get_close_matches(name, list_models(), n=3) or list_models()
    raise ValueError(f"unknown model {name!r}; did you mean {', '.join(near)}?")


def create_model(name, **overrides):
    """Build a model with fresh weights.

    Args:
        name: one of `list_models()`.
        overrides: constructor arguments that replace the variant's own: num_classes (0 for the features), image_size,
            in_chans, drop_rate, attn_drop_rate, drop_path_rate, qk_scale, and those of the family (`T2TViT`,
            `PoolingTransformer`).

    Returns:
        A `paddle.nn.Layer`: (B, in_chans, H, W) float -> (B, num_classes) logits. In training, a distilled PiT returns
        a pair of them.

    Raises:
        ValueError: for an unknown name (with the nearest ones), or arguments that do not fit together.
    """
    family = family_of(name)
    return family.model(**{**family.variants[name], **overrides})
