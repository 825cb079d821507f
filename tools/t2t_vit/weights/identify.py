"""Which variants the tensors of a file fit, by their official names and shapes alone."""

import math

from t2t_vit.models import pit, t2t

IMAGE_SIZE = 224  # pixels, of the variants that name none


def identify(shapes):
    """Variants that tensors of these shapes fit.

    Args:
        shapes: {official name: shape}; Linear weights may be in PyTorch's or in Paddle's layout.

    Returns:
        {variant: {"num_classes", "in_chans", "image_size"}}, the arguments of `create_model` that the file was made
        with. Empty if it fits none. What leaves no trace in the shapes, such as the number of heads, is not compared:
        a file of t2t_vit_14 fits t2t_vit_14_resnext too.
    """
    found = {}
    for variants, traits_of, read in _FAMILIES:
        try:
            traits, overrides = read({name: list(shape) for name, shape in shapes.items()})
        except (KeyError, IndexError, ValueError):  # of another family or geometry
            continue
        for name, variant in variants.items():
            if traits_of(variant) == traits:
                found[name] = overrides
    return found


def has_heads_of(name, model):
    """Whether a model whose shapes fit a variant has its numbers of heads too, which shapes do not show."""
    if name in t2t.VARIANTS:
        return model.blocks[0].attn.num_heads == t2t.VARIANTS[name]["num_heads"]
    return [stage.blocks[0].attn.num_heads for stage in model.transformers] == list(pit.VARIANTS[name]["heads"])


def likeliest(candidates):
    """Of the result of `identify`, the names whose own image size is the file's, or all where it is none's."""
    variants = {name: variant for family, _, _ in _FAMILIES for name, variant in family.items()}
    own = [
        name
        for name, overrides in candidates.items()
        if variants[name].get("image_size", IMAGE_SIZE) == overrides["image_size"]
    ]
    return own or list(candidates)


def _count(shapes, prefix):
    """N of a list of layers `prefix`0 to `prefix`(N-1)."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _t2t_traits(variant):
    return {key: variant.get(key, "performer") for key in ("embed_dim", "depth", "mlp_ratio", "tokens_type")}


def _read_t2t(shapes):
    embed_dim = shapes["cls_token"][2]
    if "tokens_to_token.soft_split0.weight" in shapes:
        tokens_type, in_chans = "convolution", shapes["tokens_to_token.soft_split0.weight"][1]
    else:
        tokens_type = "performer" if "tokens_to_token.attention1.w" in shapes else "transformer"
        width = shapes["tokens_to_token.attention1.norm1.weight"][0]
        in_chans, rest = divmod(width, t2t.SPLITS[0][0] ** 2)
        if rest:
            raise ValueError(f"an input of {width} values is not of the variants' soft split")
    traits = {
        "embed_dim": embed_dim,
        "depth": _count(shapes, "blocks."),
        "mlp_ratio": shapes["blocks.0.mlp.fc1.bias"][0] / embed_dim,
        "tokens_type": tokens_type,
    }
    side = math.isqrt(shapes["pos_embed"][1] - 1)
    overrides = {
        "num_classes": shapes["head.bias"][0],
        "in_chans": in_chans,
        "image_size": side * math.prod(stride for _, stride, _ in t2t.SPLITS),
    }
    return traits, overrides


def _pit_traits(variant):
    return {
        "patch_size": variant["patch_size"],
        "widths": [base_dim * heads for base_dim, heads in zip(variant["base_dims"], variant["heads"])],
        "depth": list(variant["depth"]),
        "distilled": variant["distilled"],
    }


def _read_pit(shapes):
    _, in_chans, patch_size, _ = shapes["patch_embed.conv.weight"]
    stages = range(_count(shapes, "transformers."))
    traits = {
        "patch_size": patch_size,
        "widths": [shapes[f"transformers.{stage}.blocks.0.norm1.bias"][0] for stage in stages],
        "depth": [_count(shapes, f"transformers.{stage}.blocks.") for stage in stages],
        "distilled": "head_dist.bias" in shapes,
    }
    overrides = {
        "num_classes": shapes["head.bias"][0],
        "in_chans": in_chans,
        # In all variants the stride is half a patch.
        "image_size": (shapes["pos_embed"][2] - 1) * (patch_size // 2) + patch_size,
    }
    return traits, overrides


# Variants, and what tells one from another: of a variant, and of the shapes in a file (with the overrides).
_FAMILIES = ((t2t.VARIANTS, _t2t_traits, _read_t2t), (pit.VARIANTS, _pit_traits, _read_pit))
