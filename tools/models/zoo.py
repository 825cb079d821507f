"""All models by name."""

import difflib

from models import t2t

_FAMILIES = ((t2t.T2TViT, t2t.VARIANTS),)


def list_models():
    """Names that `create_model` takes, in the order of their families' tables."""
    return [name for _, variants in _FAMILIES for name in variants]


def create_model(name, **overrides):
    """Build a model with fresh weights.

    Args:
        name: one of `list_models()`.
        overrides: constructor arguments that replace the variant's own: num_classes, image_size, in_chans, drop_rate,
            attn_drop_rate, drop_path_rate, qk_scale, and those of the family (for T2T-ViT see `T2TViT`).

    Returns:
        A `paddle.nn.Layer`: (B, in_chans, H, W) float -> (B, num_classes) logits.

    Raises:
        ValueError: for an unknown name (with the nearest ones), or arguments that do not fit together.
    """
    for build, variants in _FAMILIES:
        if name in variants:
            return build(**{**variants[name], **overrides})
    near = difflib.get_close_matches(name, list_models(), n=3) or list_models()
    raise ValueError(f"unknown model {name!r}; did you mean {', '.join(near)}?")
