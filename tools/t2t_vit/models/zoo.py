"""All models by name."""

import difflib

from t2t_vit.models import pit, t2t

_FAMILIES = {"T2T": (t2t.T2TViT, t2t.VARIANTS), "PIT": (pit.PoolingTransformer, pit.VARIANTS)}


def list_models():
    """Names that `create_model` takes, in the order of their families' tables."""
    return [name for _, variants in _FAMILIES.values() for name in variants]


def model_family(name):
    """ "T2T" or "PIT", the family of one of `list_models()`.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    for family, (_, variants) in _FAMILIES.items():
        if name in variants:
            return family
    near = difflib.get_close_matches(name, list_models(), n=3) or list_models()
    raise ValueError(f"unknown model {name!r}; did you mean {', '.join(near)}?")


def create_model(name, **overrides):
    """Build a model with fresh weights.

    Args:
        name: one of `list_models()`.
        overrides: constructor arguments that replace the variant's own: num_classes, image_size, in_chans, drop_rate,
            attn_drop_rate, drop_path_rate, qk_scale, and those of the family (`T2TViT`, `PoolingTransformer`).

    Returns:
        A `paddle.nn.Layer`: (B, in_chans, H, W) float -> (B, num_classes) logits (in training, a pair of such from a
        distilled PiT).

    Raises:
        ValueError: for an unknown name (with the nearest ones), or arguments that do not fit together.
    """
    build, variants = _FAMILIES[model_family(name)]
    return build(**{**variants[name], **overrides})
