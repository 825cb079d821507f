"""A folded model computes the same function as its model, with other operations."""

import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from t2t_vit.deploy.fold import FoldedBlock, fold
from t2t_vit.models.layers import Block
from t2t_vit.models.soft_splits import T2TModule
from t2t_vit.models.zoo import create_model

SMALL_T2T = dict(depth=2, embed_dim=24, num_heads=3, token_dim=8, num_classes=5)
DENSE = dict(stages=(1, 2), embed_dim=16, growth_rate=8, num_heads=2, token_dim=8, num_classes=5)
SMALL_PIT = dict(base_dims=(8, 8), depth=(1, 2), heads=(2, 4), patch_size=8, stride=4, num_classes=5)
KINDS = {
    "performer": ("t2t_vit_7", dict(image_size=32, **SMALL_T2T)),
    "transformer": ("t2t_vit_t_14", dict(image_size=32, **SMALL_T2T)),
    "convolution": ("t2t_vit_7", dict(image_size=32, tokens_type="convolution", **SMALL_T2T)),
    "patch": ("t2t_vit_7", dict(image_size=32, tokens_type="patch", **SMALL_T2T)),
    "se": ("t2t_vit_14_se", dict(image_size=32, **SMALL_T2T)),
    "ghost": ("t2t_vit_16_ghost", dict(image_size=32, **SMALL_T2T)),  # a head of it lies in both halves
    "dense": ("t2t_vit_dense", dict(image_size=32, **DENSE)),
    "grey": ("t2t_vit_7", dict(image_size=32, in_chans=1, **SMALL_T2T)),
    "oblong": ("t2t_vit_7", dict(image_size=(24, 40), **SMALL_T2T)),
    "two splits": ("t2t_vit_7", dict(image_size=16, splits=((4, 2, 1), (3, 2, 1)), **SMALL_T2T)),
    "scaled": ("t2t_vit_7", dict(image_size=32, qk_scale=0.3, drop_rate=0.2, drop_path_rate=0.5, **SMALL_T2T)),
    "pit": ("pit_ti", dict(image_size=32, **SMALL_PIT)),
    "distilled pit": ("pit_ti_distilled", dict(image_size=(32, 40), **SMALL_PIT)),
    "pit of one stage": (
        "pit_ti", dict(image_size=16, base_dims=(8,), depth=(1,), heads=(2,), patch_size=4, stride=4, num_classes=5),
    ),
}  # fmt: skip


def small_model(kind):
    """A model in eval mode with random values everywhere, also in norms, biases and tokens."""
    name, options = KINDS[kind]
    paddle.seed(7)
    model = create_model(name, **options)
    model.eval()
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
    return model


def largest_difference(model, other, images):
    with paddle.no_grad():
        expected, found = model(images), other(images)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_folded_model_computes_the_same(kind):
    model = small_model(kind)
    images = paddle.randn([3, model.in_chans, *model.image_size])
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    assert largest_difference(model, fold(model), images) < 5e-6
    assert all((tensor.numpy() == before[name]).all() for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_folding_removes_scales_unfolded_tokens_and_unread_outputs(kind, monkeypatch):
    model = small_model(kind)
    layer = fold(model)
    norms = [each for each in layer.sublayers() if isinstance(each, nn.LayerNorm)]
    assert norms and not any(norm.weight or norm.bias for norm in norms)
    assert not any(isinstance(each, (Block, T2TModule)) for each in layer.sublayers())
    blocks = [each for each in layer.sublayers() if isinstance(each, FoldedBlock)]
    assert len(blocks) == len(model.backbone())
    unfolded, outputs = [], []
    monkeypatch.setattr(F, "unfold", lambda *_: unfolded.append(1))
    blocks[-1].register_forward_post_hook(lambda layer, inputs, y: outputs.append(y.shape[1]))
    layer(paddle.randn([1, model.in_chans, *model.image_size]))
    assert outputs == [model.num_class_tokens] and not unfolded


@pytest.mark.parametrize("kind", ["performer", "transformer", "grey"])
def test_folded_model_computes_the_same_of_flat_colours(kind):
    # In a window of one colour the deviation that LayerNorm divides by is as small as its epsilon lets it be.
    model = small_model(kind)
    images = paddle.full([2, model.in_chans, *model.image_size], 2.2)
    images[1, :, :, 16:] = -1.7
    assert largest_difference(model, fold(model), images) < 5e-5  # E[x^2] - E[x]^2 would be off by 1e-3


def test_performer_neither_overflows_nor_underflows():
    model = small_model("performer")
    kqv = model.tokens_to_token.attention1.kqv
    kqv.weight.set_value(kqv.weight * 60)  # |k|^2 / 2 overflows exp
    images = paddle.randn([2, 3, 32, 32])
    with paddle.no_grad():
        assert paddle.isfinite(fold(model)(images)).all()
    assert largest_difference(model, fold(model), images) < 1e-4
