"""The fast forms of operations on a CPU compute what Paddle's own forms compute."""

import collections
import types

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.base import core

from t2t_vit.models import cpu_ops
from t2t_vit.models.dropout import Dropout
from t2t_vit.models.layers import LayerNorm, Linear
from t2t_vit.models.t2t_blocks import DepthwiseProduct, SqueezeExcite
from t2t_vit.models.token_layers import TokenPerformer
from t2t_vit.models.zoo import create_model

T2T = dict(image_size=32, num_classes=10, embed_dim=16, depth=2, num_heads=2, token_dim=8)
PIT = dict(image_size=32, num_classes=10, patch_size=8, stride=4, base_dims=(8, 8), depth=(1, 2), heads=(1, 2))
MODELS = {
    "performer": ("t2t_vit_7", T2T),
    "transformer": ("t2t_vit_t_14", T2T),
    "convolution": ("t2t_vit_7", {**T2T, "tokens_type": "convolution"}),
    "se": ("t2t_vit_14_se", T2T),
    "ghost": ("t2t_vit_16_ghost", T2T),
    "dense": ("t2t_vit_dense", {**T2T, "depth": 0, "stages": (1, 2), "growth_rate": 8}),
    "pit": ("pit_ti_distilled", PIT),
}


@pytest.fixture
def cpu_forms():
    yield cpu_ops.enable
    cpu_ops.enable(True)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3)


def value_and_gradients(function, *arrays):
    tensors = [paddle.to_tensor(array, stop_gradient=False) for array in arrays]
    outputs = function(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((output * (output + index + 1).cos()).sum() for index, output in enumerate(outputs)).backward()
    return [output.numpy() for output in outputs], [tensor.grad.numpy() for tensor in tensors]


# The operation, Paddle's own form, shapes of the arguments.
OPERATIONS = {
    "linear": (cpu_ops.linear, F.linear, [(2, 7, 5), (5, 3), (3,)]),
    "layer norm": (
        lambda x, weight, bias: cpu_ops.layer_norm(x, weight, bias, 1e-5),
        lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5),
        [(2, 7, 5), (5,), (5,)],
    ),
    "split": (lambda x: tuple(cpu_ops.split(x, 3)), lambda x: tuple(x.split(3, axis=-1)), [(2, 7, 6)]),
    "softmax and logsumexp": (
        cpu_ops.softmax_and_logsumexp,
        lambda x: (F.softmax(x), paddle.logsumexp(x, axis=-1, keepdim=True)),
        [(2, 7, 5)],
    ),
    "scale channels": (cpu_ops.scale_channels, paddle.multiply, [(2, 7, 5), (1, 1, 5)]),
    "scale channels of each": (cpu_ops.scale_channels, paddle.multiply, [(2, 7, 5), (2, 1, 5)]),
    "add to each": (cpu_ops.add_to_each, paddle.add, [(2, 7, 5), (2, 1, 5)]),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_paddles_in_value_and_gradient(name, dtype, tolerance):
    function, paddles, shapes = OPERATIONS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    found, expected = value_and_gradients(function, *arrays), value_and_gradients(paddles, *arrays)
    for ours, theirs in zip(found[0] + found[1], expected[0] + expected[1]):
        assert ours.dtype == dtype and close(ours, theirs, tolerance)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 0.2, 1.0])
def test_layer_norm_gradients_hold_at_any_scale(scale):
    # y = (z - shift) / scale loses all digits where the scale is small.
    _, paddles, shapes = OPERATIONS["layer norm"]
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype("float32") for shape in shapes)
    weight[2] *= scale
    found = value_and_gradients(OPERATIONS["layer norm"][0], x, weight, bias)[1]
    exact = value_and_gradients(paddles, *(array.astype("float64") for array in (x, weight, bias)))[1]
    for ours, theirs in zip(found, exact):
        assert close(ours, theirs, 5e-6)


def test_fast_forms_are_for_float32_and_float64_on_a_cpu_in_eager_mode():
    def tensor(dtype):
        return types.SimpleNamespace(dtype=dtype)

    assert all(cpu_ops.uses_fast_form(tensor(dtype)) for dtype in (paddle.float32, paddle.float64))
    assert not any(cpu_ops.uses_fast_form(tensor(dtype)) for dtype in (paddle.float16, paddle.bfloat16))


def test_a_float32_scale_leaves_16_bit_tokens_16_bits():
    layer, x = DepthwiseProduct(4), paddle.ones([2, 3, 4]).astype("bfloat16")
    y = layer(x)
    y.astype("float32").sum().backward()
    assert (y.dtype, layer.weight.grad.dtype) == (paddle.bfloat16, paddle.float32)
    assert layer.weight.grad.flatten().tolist() == [6] * 4


def test_fast_forms_leave_autocast_to_paddle(monkeypatch):
    # A CPU without bfloat16 products ignores paddle.amp.auto_cast, so the tracer is a stand-in.
    tracer = types.SimpleNamespace(_amp_level=core.AmpLevel.O1)
    monkeypatch.setattr(cpu_ops.framework, "_dygraph_tracer", lambda: tracer)
    assert not cpu_ops.uses_fast_form(paddle.ones([1]))
    tracer._amp_level = core.AmpLevel.O0
    assert cpu_ops.uses_fast_form(paddle.ones([1]))


@pytest.mark.parametrize("layer", [LayerNorm(256), cpu_ops.softmax_and_logsumexp], ids=["LayerNorm", "softmax"])
def test_results_without_a_backward_pass_are_freed(layer):
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096  # noqa: SIM115

    x = paddle.ones([4096, 256])  # 4 MB
    x.stop_gradient = False
    for _ in range(5):
        layer(x)
    before = resident()
    for _ in range(50):
        layer(x)
    assert resident() - before < 50e6  # of 200 MB and more


def test_softmax_and_logsumexp_at_magnitudes_whose_exponentials_overflow():
    x = paddle.to_tensor([[-1000.0, -1001.0], [1000.0, 999.0]])
    softmax, logsumexp = cpu_ops.softmax_and_logsumexp(x)
    assert np.allclose(softmax.numpy(), [[0.731059, 0.268941]] * 2, atol=1e-6)
    assert np.allclose(logsumexp.numpy(), [[-999.686738], [1000.313262]])


def gradients(model, images):
    outputs = model(images)
    outputs = sum(outputs) if isinstance(outputs, tuple) else outputs
    (outputs * outputs).mean().backward()
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    model.clear_gradients()
    return outputs.numpy(), found


@pytest.fixture
def fast_calls(monkeypatch):
    """Counter of the calls of each PyLayer of cpu_ops."""
    calls = collections.Counter()
    for layer in (cpu_ops._Linear, cpu_ops._LayerNorm, cpu_ops._SoftmaxAndLogsumexp, cpu_ops._Scale):

        def forward(ctx, *arguments, name=layer.__name__, original=layer.forward):
            calls[name] += 1
            return original(ctx, *arguments)

        monkeypatch.setattr(layer, "forward", staticmethod(forward))
    return calls


@pytest.mark.parametrize("kind", MODELS)
def test_models_compute_the_same_in_both_forms(kind, cpu_forms, fast_calls):
    paddle.seed(1)
    name, overrides = MODELS[kind]
    model = create_model(name, **overrides)
    for layer in model.sublayers():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    images = paddle.randn([3, 3, 32, 32])
    logits, fast = gradients(model, images)
    kinds = collections.Counter(type(layer) for layer in model.sublayers())
    unbiased = sum(isinstance(layer, Linear) and layer.bias is None for layer in model.sublayers())
    assert fast_calls["_Linear"] == kinds[Linear] - unbiased
    assert fast_calls["_LayerNorm"] == kinds[LayerNorm]
    assert fast_calls["_SoftmaxAndLogsumexp"] == 2 * kinds[TokenPerformer]
    assert fast_calls["_Scale"] == kinds[SqueezeExcite] + kinds[DepthwiseProduct]
    fast_calls.clear()
    cpu_forms(False)
    plain_logits, plain = gradients(model, images)
    assert not fast_calls
    assert close(logits, plain_logits)
    assert set(fast) == set(plain) == {n for n, p in model.named_parameters() if not p.stop_gradient}
    for parameter, gradient in plain.items():
        assert close(fast[parameter], gradient, 1e-4), parameter


def test_a_compiled_graph_uses_paddles_form(fast_calls):
    name, overrides = MODELS["performer"]
    model = create_model(name, **overrides)
    images = paddle.randn([2, 3, 32, 32])
    model.eval()
    expected = model(images).numpy()
    assert fast_calls.total() > 0
    fast_calls.clear()
    assert close(paddle.jit.to_static(model, full_graph=True)(images).numpy(), expected)
    assert not fast_calls


@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_frozen_norms_let_the_right_gradient_through(kind, form, cpu_forms):
    cpu_forms(form)
    paddle.seed(1)
    name, overrides = MODELS[kind]
    model = create_model(name, **overrides)
    model.eval()
    norms = [n for n, layer in model.named_sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
    parameters = dict(model.named_parameters())
    frozen = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}
    for parameter in frozen:
        parameters[parameter].set_value(paddle.rand(parameters[parameter].shape) + 0.5)
    images = paddle.randn([2, 3, 32, 32])
    logits, free = gradients(model, images)
    for parameter in frozen:
        parameters[parameter].stop_gradient = True
    same, found = gradients(model, images)
    assert close(same, logits) and set(free) > frozen
    for parameter in set(free) - frozen:
        assert close(found[parameter], free[parameter], 1e-4), parameter


def test_token_attention_in_pieces_is_the_whole(monkeypatch, cpu_forms):
    q, k, v = (paddle.randn([2, 50, 8]) for _ in range(3))
    monkeypatch.setattr(cpu_ops, "_LOGITS", 2 * 50 * 7)  # 7 rows at a time, 1 in the last piece
    with paddle.no_grad():
        pieces = cpu_ops.attend(q, k, v)
        cpu_forms(False)
        assert close(pieces.numpy(), cpu_ops.attend(q, k, v).numpy())
