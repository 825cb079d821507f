"""Gradients, relevance, rows of the T2T module and features follow their definitions."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from test_attention import close, flat_model, images_for, spy
from test_fold import KINDS, small_model

from t2t_vit.explain import attention
from t2t_vit.explain.attention import attention_gradients, attention_maps, gradient_maps, rollout, token_maps
from t2t_vit.explain.features import features
from t2t_vit.models import layers
from t2t_vit.models.recording import inputs_of

WITH_MODULE = ["performer", "transformer", "grey", "oblong", "two splits"]


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
