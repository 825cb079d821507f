"""Features of a model: the patch tokens after each layer, on their grids."""

import paddle

from t2t_vit.explain.attention import trace
from t2t_vit.models.family import VisionTransformer
from t2t_vit.models.layers import as_tokens
from t2t_vit.models.recording import inputs_of, outputs_of


@paddle.no_grad()
def features(model: VisionTransformer, images: paddle.Tensor) -> list[tuple[str, paddle.Tensor, tuple[int, int]]]:
    """Return the patch tokens after each layer: (B, Cin, H, W) -> list of (name, tokens (B, rows * columns, C), grid).

    The list starts with the named inputs and outputs of the stages before the blocks, such as the soft splits and token
    layers of a T2T module. Then come the input of the first block and the output of each block ("block 1", ...).
    """
    stages, backbone, T = model.stages(), model.backbone(), model.num_class_tokens
    layers = [stage.layer for stage in stages]
    with inputs_of(layers) as inputs, outputs_of(layers) as outputs:
        _, _, tokens = trace(model, images)
    found = []
    for stage, before, after in zip(stages, inputs, outputs):
        for name, x in ((stage.input_name, before), (stage.output_name, after)):
            if name:
                x = x if x.ndim == 3 else as_tokens(x)
                found.append((name, x, stage.grid))
    names = [f"{'tokens' if found else 'patches'} + positions"]
    names += [f"block {number}" for number in range(1, len(tokens))]
    grids = [place.grid for place in (backbone[0], *backbone)]
    return found + [(name, x[:, T:], grid) for name, x, grid in zip(names, tokens, grids)]
