"""Attention maps are those that the model computes; rollout, relevance and gradients follow their definitions."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from test_fold import KINDS, small_model

from t2t_vit.explain import attention
from t2t_vit.explain.attention import attention_gradients, attention_maps, gradient_maps, rollout, token_maps
from t2t_vit.explain.features import features
from t2t_vit.models import layers
from t2t_vit.models.cpu_ops import enable
from t2t_vit.models.layers import Attention, fuse_attention
from t2t_vit.models.recording import inputs_of
from t2t_vit.models.zoo import create_model

WITH_MODULE = ["performer", "transformer", "grey", "oblong", "two splits"]


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


# --- Gradients ---


def bent_logits(model, images, changes, monkeypatch):
    """Logits of the model's own forward pass, whose block b has changes[b] (B, h, M, N) added to its attention."""
    places = iter(range(len(model.backbone())))

    class Bent:
        def __getattr__(self, name):
            return getattr(F, name)

        def softmax(self, x, axis):
            found, change = F.softmax(x, axis=axis), changes.get(next(places))
            return found if change is None else found + change[:, :, : found.shape[2]]

    with monkeypatch.context() as patch, paddle.no_grad():
        patch.setattr(layers, "F", Bent())
        return model(images)


@pytest.mark.parametrize("kind", ["performer", "distilled pit"])
def test_gradients_are_the_finite_differences_of_the_logit(kind, monkeypatch):
    model = small_model(kind)
    images = images_for(model)
    logits, maps, gradients = attention_gradients(model, images, class_ids=[3, 1])
    rng = np.random.default_rng(0)
    for block, found in enumerate(gradients):
        assert found.shape == maps[block].shape
        direction = paddle.to_tensor(rng.standard_normal(found.shape).astype(np.float32))
        step = 1e-3
        ends = [bent_logits(model, images, {block: sign * step * direction}, monkeypatch) for sign in (1, -1)]
        slope = (ends[0] - ends[1]).numpy()[[0, 1], [3, 1]] / (2 * step)
        close((found * direction).sum([1, 2, 3]), slope, 4e-3 * max(1, np.abs(slope).max()))
        assert np.abs(slope).max() > 1e-2
    row, column = 0, 2  # one entry: attention of the class token of the last block to a patch
    change = np.zeros(gradients[-1].shape, np.float32)
    change[:, 1, row, column] = 1e-2
    bent = bent_logits(model, images, {len(maps) - 1: paddle.to_tensor(change)}, monkeypatch)
    slope = (bent - logits).numpy()[[0, 1], [3, 1]] / 1e-2
    close(gradients[-1].numpy()[:, 1, row, column], slope, 5e-3)


def test_relevance_by_hand():
    model = flat_model((1, 2), depth=2)
    maps = [paddle.full([1, 2, 3, 3], 1 / 3), paddle.to_tensor([[[[0.0, 0.5, 0.5]] * 3, [[1.0, 0.0, 0.0]] * 3]])]
    first = np.zeros((1, 2, 3, 3), np.float32)
    first[0, :, 0] = [[3.0, 6.0, -9.0], [0.0, -3.0, 12.0]]  # means of the positive parts / 3: 0.5, 1, 2
    second = np.zeros((1, 2, 3, 3), np.float32)
    second[0, :, 0] = [[1.0, 4.0, -4.0], [-2.0, 1.0, 1.0]]  # likewise: 0, 1, 0
    found = attention.relevance(maps, [paddle.to_tensor(first), paddle.to_tensor(second)], model)
    # (1, 0, 0) + (0, 1, 0) of the second block; of the first, row 0 is (1.5, 1, 2), row 1 (0, 1, 0).
    close(found, [[[2.0, 2.0]]], 1e-6)


def test_gradient_maps_of_classes():
    model = small_model("performer")
    images = images_for(model, 3)
    predicted = model(images).argmax(axis=-1)
    found = gradient_maps(model, images)
    assert found.shape == [3, 2, 2] and (found >= 0).all()
    close(gradient_maps(model, images, class_ids=predicted), found)
    other = int((predicted[0] + 1) % 5)
    changed = gradient_maps(model, images, class_ids=other)
    assert np.abs(changed[0].numpy() - found[0].numpy()).max() > 1e-4
    close(gradient_maps(model, images[:1], class_ids=other), changed[:1])
    with paddle.no_grad():
        close(gradient_maps(model, images), found)
    assert all(parameter.grad is None for parameter in model.parameters())
    for class_id in (5, -1, [0, 1, 7]):
        with pytest.raises(ValueError, match="the classes are 0 to 4"):
            gradient_maps(model, images, class_ids=class_id)


def test_each_token_of_a_distilled_pit_has_its_own_maps():
    model = small_model("distilled pit")
    images = images_for(model)
    for both in ([gradient_maps(model, images, token=token) for token in (0, 1)],
                 [rollout(attention_maps(model, images), model, token=token) for token in (0, 1)]):  # fmt: skip
        assert both[0].shape == [2, 7, 9]
        assert np.abs(both[0].numpy() - both[1].numpy()).max() > 1e-4


# --- The T2T module ---


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("kind", WITH_MODULE)
def test_rows_of_the_module_rebuild_its_attention(kind, scale, monkeypatch):
    model = small_model(kind)
    module = model.tokens_to_token
    with paddle.no_grad():
        for layer in module.token_layers:  # of large q and k the features overflow float32
            linear = layer.kqv if hasattr(layer, "kqv") else layer.attn.qkv
            linear.weight.set_value(linear.weight * scale)
    images, performed = images_for(model), []
    if kind == "transformer":
        # Its attention meets v in `paddle.matmul`, and then `proj` and the skip connection, both linear.
        owner = type(module.token_layers[0].attn)
        spy(monkeypatch, owner, "forward", lambda y, layer, *_: performed.append(y.numpy()))
    else:
        spy(
            monkeypatch,
            type(module.token_layers[0]),
            "attend",
            lambda y, layer, k, q, v: performed.append((y.numpy(), v.numpy())),
        )
    with paddle.no_grad(), inputs_of(module.token_layers) as splits:
        expected = model(images)
    assert [stage.layer for stage in attention.attending_stages(model)] == module.token_layers
    for stage, (layer, tokens) in enumerate(zip(module.token_layers, splits)):
        places = [0, tokens.shape[1] // 2, tokens.shape[1] - 1, 0]
        logits, rows = token_maps(model, images, stage, places)
        assert (logits == expected).all()
        assert rows.shape == [2, 4, *module.grids[stage]] and (rows >= 0).all() and rows.isfinite().all()
        rows = rows.flatten(2).numpy()
        close(rows[:, 0], rows[:, 3], 0)
        if kind == "transformer":
            close(rows.sum(axis=-1), np.ones((2, 4)))
            v = layer.attn.qkv(layer.norm1(tokens)).split(3, axis=-1)[2]
            rebuilt = v.numpy()[:, places] + layer.attn.proj(paddle.to_tensor(rows @ v.numpy())).numpy()
            close(rebuilt, performed[stage][:, places], 1e-4 * scale)
        else:
            y, v = performed[stage]
            assert (rows.sum(axis=-1) <= 1 + 1e-5).all()
            close(rows @ v, y[:, places], 1e-5 * max(1, np.abs(v).max()))


def test_performer_rows_are_the_features_products():
    model = small_model("performer")
    images, layer = images_for(model), model.tokens_to_token.token_layers[0]
    with paddle.no_grad():
        tokens = F.unfold(images, *model.tokens_to_token.splits[0]).transpose([0, 2, 1])
        k, q, _ = (part.numpy().astype(np.float64) for part in layer.kqv(layer.norm1(tokens)).split(3, axis=-1))
    w = layer.w.numpy().astype(np.float64)

    def phi(x):
        return np.exp(x @ w.T - 0.5 * (x**2).sum(axis=-1, keepdims=True)) / np.sqrt(len(w))

    products = phi(q) @ phi(k).transpose(0, 2, 1)
    expected = products / (products.sum(axis=-1, keepdims=True) + 1e-8)
    found = token_maps(model, images, 0, [5, 60])[1].flatten(2).numpy()
    np.testing.assert_allclose(found, expected[:, [5, 60]], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["convolution", "patch"])
def test_module_without_attention(kind):
    assert attention.attending_stages(small_model(kind)) == []


# --- Features ---


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_tokens_between_the_layers(kind, monkeypatch):
    model = small_model(kind)
    images, T = images_for(model), model.num_class_tokens
    outputs = []
    with monkeypatch.context() as patch:
        spy(patch, type(model.backbone()[0].block), "forward", lambda y, *_: outputs.append(y.numpy()))
        with paddle.no_grad():
            model(images)
    found = {name: (tokens, grid) for name, tokens, grid in features(model, images)}
    for tokens, grid in found.values():
        assert tokens.shape[:2] == [2, grid[0] * grid[1]]
    for number, (y, block) in enumerate(zip(outputs[:-1], model.backbone()), start=1):
        tokens, place = found[f"block {number}"]
        assert place == block.grid
        close(tokens, y[:, T:])
    named = [name for name in found if not name.startswith("block")]
    if kind in (*WITH_MODULE, "se", "ghost", "dense"):
        layer = "transformer" if kind == "transformer" else "performer"
        stages = range(1, len(model.tokens_to_token.splits))
        expected = [name for stage in stages for name in (f"soft split {stage}", f"{layer} {stage}")]
        assert named == [*expected, f"soft split {len(stages) + 1}", "tokens + positions"]
        last, projected = found[named[-2]][0], found["tokens + positions"][0]
        close(model.tokens_to_token.project(last) + model.pos_embed[:, 1:], projected)
    elif kind == "convolution":
        assert named == ["convolution 1", "convolution 2", "convolution 3", "tokens + positions"]
        close(found["convolution 3"][0] + model.pos_embed[:, 1:], found["tokens + positions"][0])
    elif kind == "patch" or "pit" in kind:
        assert named == ["patches + positions"]
