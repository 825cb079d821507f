"""Attention maps are those that the model computes, and rollout follows its definition."""

import numpy as np
import paddle
import pytest
from test_fold import KINDS, small_model

from t2t_vit.explain import attention
from t2t_vit.explain.attention import attention_maps, rollout
from t2t_vit.models.cpu_ops import enable
from t2t_vit.models.layers import Attention, fuse_attention
from t2t_vit.models.zoo import create_model


def images_for(model, count=2, seed=0):
    paddle.seed(seed)
    return paddle.randn([count, model.in_chans, *model.image_size])


def spy(monkeypatch, owner, name, keep):
    """Let `keep(result, *arguments)` see each call of owner.name, a method or function."""
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        keep(result, *arguments)
        return result

    monkeypatch.setattr(owner, name, wrapped)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


# --- The model's own attention ---


@pytest.mark.parametrize("kind", KINDS)
def test_maps_rebuild_the_output_of_every_block(kind, monkeypatch):
    model = small_model(kind)
    images = images_for(model)
    calls = []
    with monkeypatch.context() as patch:
        spy(patch, Attention, "_attend", lambda y, layer, q, k, v: calls.append((y.numpy(), v.numpy())))
        with paddle.no_grad():
            expected = model(images)
    maps = attention_maps(model, images)
    assert len(maps) == len(calls) == len(model.backbone())
    for found, (y, v), place in zip(maps, calls, model.backbone()):
        tokens = model.num_class_tokens + place.grid[0] * place.grid[1]
        assert found.shape == [2, place.block.attn.num_heads, tokens, tokens] and found.stop_gradient
        close(found.sum(axis=-1), np.ones(found.shape[:3]))
        rebuilt = np.einsum("bhmn,bhnc->bmhc", found.numpy(), v)
        close(rebuilt[:, : y.shape[1]], y)  # the last block computes only the class tokens
    logits, _, tokens = attention.trace(model, images)
    close(logits.detach(), expected)
    assert len(tokens) == len(maps) + 1
    with paddle.no_grad():
        assert (model(images) == expected).all(), "the model computes something else after it was looked at"


@pytest.mark.parametrize("name, size", [("pit_ti", (224, 224)), ("pit_b", (224, 224)), ("pit_ti", (200, 270))])
def test_cells_of_a_pit_are_where_its_tokens_look(name, size):
    paddle.seed(0)
    model = create_model(name, image_size=size, num_classes=10)
    last_blocks = np.cumsum([len(each.blocks) for each in model.transformers]) - 1
    for stage, block in enumerate(last_blocks):
        images = images_for(model, count=1)
        images.stop_gradient = False
        tokens = model.patch_embed(images)
        for pool in model.pools[:stage]:
            tokens = pool.conv(tokens)
        grid = model.backbone()[block].grid
        assert tuple(tokens.shape[2:]) == grid
        place = [2 * length // 3 for length in grid]  # no window is cut off by the edge there
        looking = tokens[0, :, place[0], place[1]]
        seen = paddle.grad((looking * paddle.randn(looking.shape)).sum(), images)[0].abs().sum(axis=[0, 1]).numpy()
        rows, columns = np.indices(seen.shape) + 0.5
        left, top, right, bottom = attention.token_box(model, block)
        cell = (bottom - top) / grid[0], (right - left) / grid[1]
        expected = top + (place[0] + 0.5) * cell[0], left + (place[1] + 0.5) * cell[1]
        close([(seen * rows).sum() / seen.sum(), (seen * columns).sum() / seen.sum()], expected, 0.1 * cell[0])
    assert attention.token_box(model) == attention.token_box(model, block)


@pytest.mark.parametrize("size", [224, (96, 160)])
def test_cells_of_a_t2t_vit_are_where_its_tokens_look(size):
    paddle.seed(0)
    model = create_model("t2t_vit_7", image_size=size, num_classes=10, tokens_type="convolution", depth=1)
    module, images = model.tokens_to_token, images_for(model, count=1)
    images.stop_gradient = False
    tokens = images
    for stage, layer in enumerate([*module.token_layers[:-1], module.project]):
        tokens = layer(tokens)
        grid = tuple(tokens.shape[2:])
        assert grid == module.grids[stage]
        place = [2 * length // 3 for length in grid]  # no window is cut off by the edge there
        looking = tokens[0, :, place[0], place[1]]
        seen = paddle.grad((looking * paddle.randn(looking.shape)).sum(), images, retain_graph=True)[0]
        seen = seen.abs().sum(axis=[0, 1]).numpy()
        rows, columns = np.indices(seen.shape) + 0.5
        left, top, right, bottom = attention.grid_box(module.splits[: stage + 1], module.grids[stage])
        cell = (bottom - top) / grid[0], (right - left) / grid[1]
        expected = top + (place[0] + 0.5) * cell[0], left + (place[1] + 0.5) * cell[1]
        close([(seen * rows).sum() / seen.sum(), (seen * columns).sum() / seen.sum()], expected, 0.1 * cell[0])
    assert attention.token_box(model) == attention.grid_box(module.splits[: stage + 1], module.grids[stage])


def test_cells_of_a_pit_are_those_of_its_stages():
    model = create_model("pit_ti", num_classes=10)
    edges = [attention.token_box(model, block)[::2] for block in (0, 1, 2, 7, 8, 11)]
    assert edges == [(4, 220)] * 2 + [(0, 224)] * 2 + [(-8, 216)] * 2


@pytest.mark.parametrize("kind", ["performer", "distilled pit"])
def test_maps_do_not_depend_on_the_fast_forms(kind):
    model = small_model(kind)
    images = images_for(model)
    expected = attention_maps(model, images)
    assert all((one == whole[1:]).all() or np.abs(one.numpy() - whole[1:].numpy()).max() < 1e-6
               for one, whole in zip(attention_maps(model, images[1:]), expected))  # fmt: skip
    enable(False)
    try:
        fuse_attention(model)
        for found, before in zip(attention_maps(model, images), expected):
            close(found, before)
    finally:
        enable(True)


def test_a_training_model_and_other_images_are_refused():
    model = small_model("performer")
    with pytest.raises(ValueError, match="the model takes images of 3 channels and 32x32"):
        attention_maps(model, paddle.zeros([1, 3, 48, 48]))
    model.train()
    with pytest.raises(ValueError, match="eval"):
        attention_maps(model, images_for(model))


def test_grids_of_a_pit_halve_rounding_up():
    model = small_model("distilled pit")  # 32x40 pixels in patches of 8 every 4
    assert [place.grid for place in model.backbone()] == [(7, 9), (4, 5), (4, 5)]
    rows = paddle.arange(22, dtype="float32").reshape([1, 22])
    assert attention.on_grid(rows, model).numpy().tolist() == [np.arange(2, 22).reshape(4, 5).tolist()]


# --- Rollout ---


def flat_model(grid, depth):
    """A T2T-ViT whose backbone has this grid."""
    splits = ((3, 1, 1), (3, 1, 1))
    options = dict(embed_dim=4, depth=depth, num_heads=2, token_dim=4, num_classes=3, splits=splits)
    model = create_model("t2t_vit_7", image_size=grid, **options)
    model.eval()
    return model


def test_rollout_by_hand():
    model = flat_model((1, 2), depth=2)
    first = [[[0.2, 0.6, 0.2], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[0.4, 0.2, 0.4], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]
    second = [[[0.0, 1.0, 0.0]] * 3, [[0.0, 0.0, 1.0]] * 3]
    maps = [paddle.to_tensor([first], dtype="float32"), paddle.to_tensor([second], dtype="float32")]
    # Means: class row (0.3, 0.4, 0.3), then (0, 0.5, 0.5); halves with the identity:
    # (0.65, 0.2, 0.15), (0.25, 0.75, 0), (0.25, 0, 0.75) and of the second block (0.5, 0.25, 0.25).
    close(rollout(maps, model), [[[0.5 * 0.2 + 0.25 * 0.75, 0.5 * 0.15 + 0.25 * 0.75]]], 1e-6)
    close(rollout(maps[:1], model), [[[0.2, 0.15]]], 1e-6)
    close(rollout(maps[:1], model, token=2), [[[0.0, 0.75]]], 1e-6)


def test_rollout_of_uniform_attention():
    model = flat_model((2, 3), depth=2)
    for block in model.blocks:
        block.attn.qkv.weight.set_value(paddle.zeros_like(block.attn.qkv.weight))  # q.k = 0
    # 7 tokens: a block passes on 1/14 of each other token, two blocks 1/14 + 1/14 * (1/2) + 1/14 * (1/2) of each patch.
    close(rollout(attention_maps(model, images_for(model)), model), np.full((2, 2, 3), 1 / 7 * 3 / 4), 1e-6)


def test_rollout_passes_through_poolings_of_a_pit():
    model = create_model("pit_ti", image_size=(12, 24), patch_size=4, stride=4, base_dims=(4, 4), depth=(1, 1),
                         heads=(1, 2), num_classes=3)  # fmt: skip
    model.eval()
    pool = model.pools[0]
    pool.conv.weight.set_value(paddle.full(pool.conv.weight.shape, -0.3))
    weights = attention.pool_weights(pool, (3, 6), num_tokens=1).numpy()
    assert weights.shape == (1 + 2 * 3, 1 + 3 * 6)
    close(weights.sum(axis=1), np.ones(7), 1e-6)
    assert (weights[0] == np.eye(19)[0]).all()
    # Of all the windows together every row and column but those cut off at the edge counts alike; in the window of
    # row 0, column 1 are the columns 1 to 3 (which lies in two, as 1 does) of the rows 0 and 1 (in two).
    expected = np.outer([1, 1 / 2, 0], [0, 1 / 2, 1, 1 / 2, 0, 0])
    close(weights[2, 1:].reshape(3, 6), expected / expected.sum(), 1e-6)
    identity = [paddle.eye(19).reshape([1, 1, 19, 19]), paddle.eye(7).reshape([1, 1, 7, 7])]
    close(rollout(identity, model, token=2)[0], expected / expected.sum(), 1e-6)
    weight = np.zeros(pool.conv.weight.shape, np.float32)
    weight[:, :, 1, 1] = 2  # takes the patch in the middle of each window
    pool.conv.weight.set_value(paddle.to_tensor(weight))
    assert attention.pool_weights(pool, (3, 6), num_tokens=1).isfinite().all()
    close(rollout(identity, model, token=2)[0], np.outer([1, 0, 0], [0, 0, 1, 0, 0, 0]), 1e-6)


@pytest.mark.parametrize("kind", ["performer", "distilled pit", "oblong"])
def test_rollout_is_the_product_of_its_matrices(kind):
    model = small_model(kind)
    maps = attention_maps(model, images_for(model))
    backbone, T = model.backbone(), model.num_class_tokens
    for token in range(T):
        product, before = None, None
        for place, found in zip(backbone, maps):
            size = found.shape[-1]
            if place.pool is not None:
                product = attention.pool_weights(place.pool, before, T).numpy() @ product
            half = (found.numpy().mean(axis=1) + np.eye(size)) / 2
            product, before = half if product is None else half @ product, place.grid
        found = rollout(maps, model, token=token)
        assert found.shape == [2, *backbone[0].grid]
        close(found, product[:, token, T:].reshape(found.shape))
        close(product.sum(axis=-1), np.ones(product.shape[:2]))
