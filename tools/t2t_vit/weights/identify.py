"""Find the model variants that the tensors of a file fit, by their official names and shapes."""

import paddle

from t2t_vit.models.zoo import FAMILIES, create_model, family_of

IMAGE_SIZE = 224  # pixels; default of variants that do not set it


def identify(shapes):
    """Find the variants that tensors of these shapes fit.

    Args:
        shapes: {official name: shape}; Linear weights may be in PyTorch's or in Paddle's layout.

    Returns:
        {variant: {"num_classes", "in_chans", "image_size", ...}}, arguments of `create_model` for these tensors. Empty
        if no variant fits. Tensors without a head are those of num_classes=0. The shapes do not show the number of
        heads: tensors of t2t_vit_14 fit t2t_vit_14_resnext too.
    """
    shapes = {"head.bias": [0], **{name: list(shape) for name, shape in shapes.items()}}
    found = {}
    for family in FAMILIES:
        try:
            traits, overrides = family.read_shapes(shapes)
        except (KeyError, IndexError, ValueError):  # another family or geometry
            continue
        for name, variant in family.variants.items():
            if family.traits({**variant, **overrides}) == traits:
                found[name] = overrides
    return found


def described(candidates):
    """List the variants in the result of `identify`, with the token type that their T2T module has instead."""
    types = {name: overrides.get("tokens_type") for name, overrides in candidates.items()}
    return [f"{name} with MODEL.T2T.TOKENS_TYPE {kind}" if kind else name for name, kind in types.items()]


def has_heads_of(name, model):
    """Whether every block of `model` has as many heads as variant `name`. Shapes do not show this."""
    with paddle.LazyGuard():  # parameters without values
        variant = create_model(name)
    heads, expected = ([place.block.attn.num_heads for place in each.backbone()] for each in (model, variant))
    return heads == expected


def closest(candidates):
    """From the result of `identify`, keep the variants with the image size of the file, or all if there is none."""
    own = [
        name
        for name, overrides in candidates.items()
        if family_of(name).variants[name].get("image_size", IMAGE_SIZE) == overrides["image_size"]
    ]
    return own or list(candidates)
