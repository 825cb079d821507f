"""What the layers of a model make of images: the tokens between them, on their grids."""

import paddle

from t2t_vit.explain.attention import attending_stages, num_class_tokens, soft_splits, token_grid, trace
from t2t_vit.models.layers import check_images
from t2t_vit.models.t2t import T2TViT, TokenPerformer


@paddle.no_grad()
def features(model, images):
    """Tokens of the patches (B, rows * columns, C) after each layer: (B, Cin, H, W) -> list of (name, tokens, grid).

    Of a T2T module what its soft splits read and its token layers, or convolutions, make; "tokens + positions" (of a
    PiT "patches + positions") as they enter the first block; then "block 1" to the last.
    """
    check_images(images, model.in_chans, model.image_size)
    class_tokens = num_class_tokens(model)
    found = _of_module(model.tokens_to_token, images) if isinstance(model, T2TViT) else []
    _, _, layers = trace(model, images)
    names = [f"{'tokens' if found else 'patches'} + positions", *(f"block {n}" for n in range(1, len(layers)))]
    grids = [token_grid(model, max(place - 1, 0)) for place in range(len(layers))]
    return found + [(name, x[:, class_tokens:], grid) for name, x, grid in zip(names, layers, grids)]


def _of_module(module, images):
    if not attending_stages(module):
        return _of_convolutions(module, images)
    kind = "performer" if isinstance(module.stages[0], TokenPerformer) else "transformer"
    found, grids = [], [tuple(grid) for grid in module.grids]
    for place, (tokens, grid) in enumerate(zip(soft_splits(module, images), grids), start=1):
        found.append((f"soft split {place}", tokens, grid))
        if place <= len(module.stages):
            found.append((f"{kind} {place}", module.stages[place - 1](tokens), grid))
    return found


def _of_convolutions(module, images):
    found, x = [], images
    for place, (layer, grid) in enumerate(zip(module.stages, module.grids), start=1):
        x = layer(x)
        found.append((f"convolution {place}", x.flatten(2).transpose([0, 2, 1]), tuple(grid)))
    return found
