"""The models compared with values of the official PyTorch code, and their own interface."""

import numpy as np
import official
import paddle
import paddle.nn.functional as F
import pytest

from t2t_vit.models.soft_splits import split_grids
from t2t_vit.models.t2t import T2TViT
from t2t_vit.models.zoo import create_model, list_models
from t2t_vit.training.parameters import parameter_groups

VARIANTS = [name for name in official.FIGURES if not name.startswith("tiny_")]
# Small enough to train in a test, whatever the token type.
SMALL = dict(image_size=32, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=5, token_dim=8)
BLOCKS = {
    "se": dict(block="se"),
    "ghost": dict(block="ghost", mlp_ratio=3.0),
    "dense": dict(block="dense", depth=0, stages=(1, 2), growth_rate=8),
}


def count(parameters):
    return sum(int(np.prod(parameter.shape)) for parameter in parameters)


def tiny(tokens_type):
    return official.set_weights(T2TViT(tokens_type=tokens_type, **official.TINY))


def test_zoo_lists_fifteen_t2t_vits_and_eight_pits():
    assert set(list_models()) == set(VARIANTS)
    assert sum(name.startswith("t2t_vit_") for name in VARIANTS) == 15 and len(VARIANTS) == 23


def test_unknown_name_is_refused_with_near_matches():
    with pytest.raises(ValueError, match="unknown model 't2t_vit_15'.*t2t_vit_14"):
        create_model("t2t_vit_15")


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_logits_and_gradient_norms_are_official(name):
    figures = official.FIGURES[name]
    model = official.build(name)
    assert count(model.parameters()) == figures["params_total"]
    trained = count(p for p in model.parameters() if not p.stop_gradient)
    assert trained == figures.get("params_trainable", figures["params_total"])
    x = paddle.to_tensor(official.images(2, figures["image_size"]))
    expected = official.ARRAYS[f"{name}/logits"]
    with paddle.no_grad():
        logits = model(x).numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    if "grad_norms" in figures:
        loss, gradients, input_gradient, logits = official.gradients(model, x, [1, 7])
        assert loss == pytest.approx(figures["loss"], rel=1e-5)
        assert set(gradients) == set(figures["grad_norms"])
        for parameter, gradient in gradients.items():
            assert np.linalg.norm(gradient) == pytest.approx(figures["grad_norms"][parameter], rel=1e-3), parameter
        assert np.linalg.norm(input_gradient) == pytest.approx(figures["input_grad_norm"], rel=1e-3)
        assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("tokens_type", ["performer", "transformer"])
def test_full_gradients_are_official(tokens_type):
    prefix = f"tiny_{tokens_type}"
    model = tiny(tokens_type)
    _, gradients, input_gradient, _ = official.gradients(model, official.images(3, 64), [1, 7, 0])
    expected = {
        key.removeprefix(f"{prefix}/grad/"): official.ARRAYS[key]
        for key in official.ARRAYS
        if key.startswith(f"{prefix}/grad/")
    }
    assert set(gradients) == set(expected)
    gradients["input"], expected["input"] = input_gradient, official.ARRAYS[f"{prefix}/input_grad"]
    for name, gradient in gradients.items():
        assert np.linalg.norm(gradient - expected[name]) < 1e-4 * np.linalg.norm(expected[name]), name


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution", "patch"])
def test_every_trained_parameter_gets_a_gradient_and_frozen_ones_none(tokens_type):
    model = T2TViT(tokens_type=tokens_type, drop_path_rate=0.1, **SMALL)
    model.train()
    paddle.seed(0)
    F.cross_entropy(model(paddle.randn([4, 3, 32, 32])), paddle.to_tensor([0, 1, 2, 3])).backward()
    frozen = {"pos_embed"}
    if tokens_type == "performer":
        frozen |= {"tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    assert set(parameter_groups(model)["frozen"]) == frozen
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.abs().max().item() > 0, name


@pytest.mark.parametrize("kind", ["performer", "transformer", "convolution", "patch", "se", "ghost", "dense"])
def test_small_models_learn(kind):
    paddle.seed(0)
    model = T2TViT(**SMALL, tokens_type=kind) if kind not in BLOCKS else T2TViT(**{**SMALL, **BLOCKS[kind]})
    x, labels = paddle.randn([10, 3, 32, 32]), paddle.arange(10) % 5
    optimizer = paddle.optimizer.AdamW(0.01, parameters=[p for p in model.parameters() if not p.stop_gradient])
    losses = []
    while not losses or losses[-1] > 0.3 * losses[0]:  # 11 to 30 steps
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
        assert len(losses) < 100, losses


def test_initialisation_is_official():
    paddle.seed(1)
    model = create_model("t2t_vit_7")
    w = model.tokens_to_token.attention1.w.numpy()  # orthogonal rows, times sqrt(m)
    assert np.allclose(w @ w.T, 32 * np.eye(32), atol=1e-4)
    qkv = model.blocks[0].attn.qkv
    assert qkv.bias is None and abs(qkv.weight.numpy().std() / 0.02 - 1) < 0.02
    assert abs(model.cls_token.numpy().std() / 0.02 - 1) < 0.2
    assert not model.head.bias.numpy().any() and (model.norm.weight.numpy() == 1).all()
    conv = create_model("t2t_vit_7", tokens_type="convolution").tokens_to_token.soft_split0
    bound = (3 * 7 * 7) ** -0.5
    for values in (conv.weight.numpy(), conv.bias.numpy()):
        assert 0.9 * bound < np.abs(values).max() <= bound


def test_position_table_is_the_sinusoid():
    table = create_model("t2t_vit_7").pos_embed.numpy()[0]  # (197, 256)
    position, channel = 100, 37  # odd channels are the cosines of the even channel before
    assert table.shape == (197, 256) and table[0, 0] == 0 and table[0, 1] == 1
    assert table[position, channel] == pytest.approx(np.cos(position / 10000 ** (36 / 256)), abs=1e-6)


# --- Geometry ---


def test_token_grid_comes_from_the_soft_splits():
    model = create_model("t2t_vit_7", image_size=(160, 250), num_classes=3)
    # 7/4/2 then 3/2/1 twice: 160 -> 40 -> 20 -> 10, 250 -> 62 -> 31 -> 16
    assert model.tokens_to_token.grids == [(40, 62), (20, 31), (10, 16)]
    assert model.pos_embed.shape == [1, 161, 256]
    model.eval()
    assert model(paddle.randn([2, 3, 160, 250])).shape == [2, 3]


def test_grid_agrees_with_what_unfold_makes():
    for size in range(17, 40):
        grids = split_grids((size, 2 * size), [(7, 4, 2), (3, 2, 1)])
        tokens = F.unfold(paddle.zeros([1, 1, size, 2 * size]), 7, 4, 2).shape[2]
        assert tokens == grids[0][0] * grids[0][1]


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_soft_split_gathers_each_tokens_neighbours(size):
    # By hand and by value: a mix-up of height and width would pass every square test, and every test of shapes.
    paddle.seed(3)
    module = T2TViT(**{**SMALL, "image_size": size}).tokens_to_token
    module.eval()
    (height, width), (new_height, new_width) = module.grids[:2]
    seen = {}
    module.attention1.register_forward_post_hook(lambda layer, inputs, y: seen.update(first=y.numpy()[0]))
    module.attention2.register_forward_pre_hook(lambda layer, inputs: seen.update(second=inputs[0].numpy()[0]))
    module(paddle.randn([1, 3, *size]))
    tokens = np.pad(seen["first"].reshape(height, width, -1), ((1, 1), (1, 1), (0, 0)))  # (h + 2, w + 2, E)
    for row in range(new_height):
        for column in range(new_width):
            window = tokens[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]  # (3, 3, E), kernel 3, stride 2
            expected = window.transpose(2, 0, 1).reshape(-1)
            assert (seen["second"][row * new_width + column] == expected).all()


@pytest.mark.parametrize("image", [(3, 64, 32), (1, 32, 32)])
def test_other_image_than_built_for_is_refused(image):
    with pytest.raises(ValueError, match="takes images of 3 channels and 32x32"):
        T2TViT(**SMALL)(paddle.zeros([1, *image]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(image_size=2), "too small for the soft splits"),
        (dict(num_heads=5), "width 24 is not divisible by 5 heads"),
        (dict(token_dim=1), "leaves no random features"),
        (dict(mlp_ratio=0.01), "hidden width of 0"),
        (dict(tokens_type="lstm"), "unknown token type 'lstm'.*performer, transformer, convolution, patch"),
        (dict(splits=[(4, 4, 0)]), "one soft split, .*needs tokens_type patch, not performer"),
        (dict(splits=[(4, 4, 0)], tokens_type="patch", image_size=3), "too small for the soft splits"),
        (dict(block="sea"), "unknown block 'sea': choose one of plain, se, ghost, dense"),
        (dict(block="se", embed_dim=8), "needs a width of 16 or more, not 8"),
        (dict(block="ghost"), "ghost MLP of width 24 has a hidden width of 48: mlp_ratio must be 3"),
        (dict(block="ghost", embed_dim=9, num_heads=3, mlp_ratio=3.0), "width 9 of ghost attention is odd"),
        (dict(block="dense"), r"block dense does not fit depth 2, stages \[\] and growth_rate 0"),
        (dict(block="se", stages=(1, 2), growth_rate=8), "block se does not fit depth 2, "),
        (dict(depth=0), "block plain does not fit depth 0, "),
        (dict(depth=-1), "depth -1 and growth_rate 0 must not be negative"),
        (dict(block="dense", depth=0, stages=(1,), growth_rate=-8), "growth_rate -8 must not be negative"),
        (dict(block="dense", depth=0, stages=(0,), growth_rate=8), r"of stages \[0\] each must be 1 or more"),
        (dict(block="dense", depth=0, stages=(1, 0), growth_rate=8), r"of stages \[1, 0\] each must be 1 or more"),
        (dict(block="dense", depth=0, stages=(-1, 2), growth_rate=8), r"of stages \[-1, 2\] each must be 1 or more"),
        (dict(block="dense", depth=0, stages=3, growth_rate=8), "stages is 3: give a list"),
        (dict(num_heads=0), "width 24 is not divisible by 0 heads"),
        (dict(image_size=(32,)), r"image_size is \(32,\): give one number or \(height, width\)"),
        (dict(splits=[], tokens_type="patch"), r"splits is \[\]: give \(kernel, stride, padding\) of each"),
        (dict(splits=[()], tokens_type="patch"), r"splits is \[\(\)\]: give"),
        (dict(splits=[(0, 1, 0)], tokens_type="patch"), r"splits is \[\(0, 1, 0\)\]: give"),
        (dict(splits=[(3, 0, 1), (3, 2, 1)]), "kernel and stride 1 or more"),
    ],
)
def test_inconsistent_arguments_are_named(wrong, message):
    splits = dict(splits=[(7, 4, 0), (3, 2, 0)])  # without padding, so that an image can be too small
    with pytest.raises(ValueError, match=message):
        T2TViT(**{**SMALL, **splits, **wrong})


def test_drop_path_rises_linearly_and_keeps_the_mean():
    model = create_model("t2t_vit_7", drop_path_rate=0.3)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.05 * i for i in range(7)])
    drop_path = model.blocks[-1].drop_path
    paddle.seed(0)
    dropped = drop_path(paddle.ones([4000, 2, 2])).numpy()
    assert (dropped.reshape(4000, -1).std(axis=1) == 0).all()  # whole images
    assert abs((dropped[:, 0, 0] == 0).mean() - 0.3) < 0.03 and abs(dropped.mean() - 1) < 0.05
    drop_path.eval()
    assert (drop_path(paddle.ones([4, 2])).numpy() == 1).all()
