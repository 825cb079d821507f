"""CPU optimizations do not change results: faster operations, parts of a batch on threads, recomputing, compiling."""

import collections
import contextlib
import itertools
import time
import types

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import ROOT, error_line, few_digits, tool
from paddle.base import core
from test_train_step import steps

from t2t_vit.common.errors import UserError
from t2t_vit.common.runtime import asked_threads
from t2t_vit.config import load_config
from t2t_vit.models import cpu_ops, layers
from t2t_vit.models.dropout import Dropout, drawing_from
from t2t_vit.models.layers import Block, LayerNorm, Linear
from t2t_vit.models.t2t_blocks import DepthwiseProduct, SqueezeExcite
from t2t_vit.models.token_layers import TokenPerformer
from t2t_vit.models.zoo import create_model
from t2t_vit.parallel import microbatch
from t2t_vit.parallel.microbatch import MicroBatches, inference
from t2t_vit.training.train_step import TrainStep

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


# --- Parts of a batch ---


def settings(*pairs, config="lit_data"):
    keys = (("DATA.NUM_WORKERS", "0"), ("TRAIN.BATCH_SIZE", "10"))
    return load_config(f"configs/{config}.yaml", [*keys, *zip(pairs[::2], pairs[1::2])])


def losses(*pairs, count=3, config="lit_data"):
    """Losses, and the weights, of the first steps of a training with these settings."""
    cfg = settings(*pairs, config=config)
    step = train_step(cfg)
    batches = itertools.islice(steps(cfg), count)
    found = [step(batch, 1e-3, 0, number) for number, batch in enumerate(batches)]
    return [float(result.loss) for result in found], {k: v.numpy() for k, v in step.model.state_dict().items()}


def train_step(cfg):
    paddle.seed(cfg.SEED)
    step = TrainStep(cfg)
    step.train()
    return step


def test_parts_of_a_batch_give_the_gradients_of_the_batch():
    no_dropout = ("MODEL.DROP_PATH_RATE", "0.0", "MODEL.T2T.TOKENS_TYPE", "transformer")
    whole = losses(*no_dropout, "CPU.MICRO_BATCH", "0")
    for size in ("1", "3", "10", "64"):
        parts = losses(*no_dropout, "CPU.MICRO_BATCH", size)
        assert close(parts[0], whole[0])
        # AdamW divides by the size of the gradient, which amplifies rounding of gradients near 0.
        assert all(close(parts[1][name], value, 1e-3) for name, value in whole[1].items())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_parts_learn_from_a_teacher_as_the_batch_does(kind):
    words = ("MODEL.DROP_PATH_RATE", "0.0", "MODEL.T2T.TOKENS_TYPE", "transformer", "DISTILL.TYPE", kind)
    words += ("DISTILL.TEACHER", str(ROOT / "output/pretrained/lit_data/config.yaml"), "DISTILL.TAU", "2.0")
    whole = losses(*words, "CPU.MICRO_BATCH", "0", count=2)
    parts = losses(*words, "CPU.MICRO_BATCH", "3", count=2)
    alone = losses(*words[:4], "CPU.MICRO_BATCH", "3", count=2)
    assert close(parts[0], whole[0])
    assert not close(alone[0], whole[0], 1e-3)


def test_accumulated_parts_add_up(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    norms = []
    for size in ("0", "3"):
        no_dropout = ("MODEL.DROP_PATH_RATE", "0.0", "MODEL.T2T.TOKENS_TYPE", "transformer")
        cfg = settings(*no_dropout, "TRAIN.ACCUM_STEPS", "2", "CPU.MICRO_BATCH", size)
        norms.append(float(train_step(cfg)(next(steps(cfg)), 1e-3, 0, 0).gradient_norm))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_threads_change_only_the_order_of_sums(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = losses()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    three, again = losses(), losses()
    assert three[0] == again[0]
    assert all((three[1][name] == value).all() for name, value in again[1].items())
    assert close(one[0], three[0])


def test_frozen_parameters_do_not_change(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    cfg = settings("TRAIN.FREEZE", '["tokens_to_token*", "blocks.0*"]')
    step = train_step(cfg)
    before = {name: value.numpy() for name, value in step.model.state_dict().items()}
    step(next(steps(cfg)), 1e-3, 0, 0)
    after = {name: value.numpy() for name, value in step.model.state_dict().items()}
    changed = {name for name in before if (before[name] != after[name]).any()}
    frozen = {name for name in before if name.startswith(("tokens_to_token", "blocks.0", "pos_embed"))}
    assert changed == set(before) - frozen


def test_every_part_draws_its_own_numbers():
    # The batch is one image eight times, so parts differ only in their random draws. The same step draws the same.
    model, batches = train_step(settings("MODEL.DROP_RATE", "0.3")).model, MicroBatches(1, 2)
    image, logits = paddle.randn([1, 3, 16, 16]), []
    for numbers in ([42, 0, 0, 1, 0], [42, 0, 0, 1, 0], [42, 0, 0, 2, 0]):
        parts = batches.backward(
            model, lambda model, part, _: model(part[0]).numpy()[0], [image.expand([8, -1, -1, -1])], numbers
        )
        logits.append(np.stack(parts))
    assert len(np.unique(logits[0], axis=0)) == 8
    assert (logits[0] == logits[1]).all()
    assert (logits[0] != logits[2]).any(axis=1).all()


def test_parts_follow_the_mode_of_the_model():
    cfg = settings("MODEL.DROP_RATE", "0.5")
    step, whole = train_step(cfg), train_step(settings("MODEL.DROP_RATE", "0.5", "CPU.MICRO_BATCH", "0"))
    batch = next(steps(cfg))
    step(batch, 0.0, 0, 0)  # makes the replicas, in training mode
    step.model.eval()
    whole.model.eval()
    assert float(step(batch, 0.0, 0, 1).loss) == pytest.approx(float(whole(batch, 0.0, 0, 1).loss), rel=1e-5)


def test_a_batch_that_fails_leaves_nothing_to_the_next():
    layer, images = paddle.nn.Linear(4, 2), paddle.randn([6, 4])
    parts = MicroBatches(2, 2)

    def run(model, part, share):
        if run.fails and part[0].shape == [2, 4] and (part[0] == images[:2]).all():
            raise UserError("no memory")
        time.sleep(0.2 * run.fails)  # the other thread is not done when this one fails
        (model(part[0]).sum() * share).backward()
        return ()

    for run.fails in (True, False):
        with pytest.raises(UserError) if run.fails else contextlib.nullcontext():
            parts.backward(layer, run, [images], [1])
    assert close(layer.weight.grad.numpy()[:, 0], images.numpy().sum(axis=0) / 3)


def test_inference_by_parts_gives_the_logits_of_the_whole(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    cfg = settings("CPU.MICRO_BATCH", "2")
    model = create_model("t2t_vit_7", **T2T)
    model.eval()
    for count in (1, 2, 3, 7):
        images = paddle.randn([count, 3, 32, 32])
        logits = inference(model, cfg)(images)
        assert logits.shape == [count, 10]
        assert logits.stop_gradient
        assert close(logits.numpy(), model(images).numpy())


@pytest.mark.parametrize(("value", "threads"), [("4", 4), ("3,2", 3), (" 2", 2), ("", 0)])
def test_threads_are_those_that_the_user_set(value, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert asked_threads() == threads


@pytest.mark.parametrize("value", ["0", "-3", "many", "99999999", "²"])
def test_impossible_threads_are_an_error(value, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert error_line("train").endswith(f"OMP_NUM_THREADS={value}, which must be 1 to 1024")


@pytest.mark.parametrize(
    ("pixels", "batch", "size"), [(224, 64, 4), (512, 64, 4), (112, 64, 16), (120, 64, 13), (16, 64, 16), (16, 8, 4)]
)
def test_parts_of_small_images_have_more_images(pixels, batch, size):
    cfg = settings("DATA.IMAGE_SIZE", str(pixels))
    assert microbatch.micro_batches(cfg, batch).size == size


def test_every_thread_has_a_part_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    parts, cores, sizes = microbatch.micro_batches(settings("DATA.IMAGE_SIZE", "224"), 64), [], []
    monkeypatch.setattr(microbatch.core, "set_num_threads", cores.append)

    def model(images):
        sizes.append(len(images))
        return images

    for count in (2, 6, 40):
        parts.forward(model, paddle.zeros([count, 3, 2, 2]))
    assert sizes == [1, 1] + [2, 2, 2] + [4] * 10  # at most CPU.MICRO_BATCH images
    assert cores == [2, 2, 4] + [1, 1, 1, 4] + [1] * 10 + [4]


def test_parts_keep_the_mode_of_each_layer():
    model = paddle.nn.Sequential(paddle.nn.Dropout(0.9), paddle.nn.Linear(4, 4))
    model[0].eval()  # as a frozen layer
    images = paddle.ones([4, 4])
    parts = MicroBatches(2, 1).backward(model, lambda model, part, _: model(part[0]), [images], [1])
    assert (paddle.concat(parts).numpy() == model(images).numpy()).all()


def test_error_in_a_part_is_raised():
    parts = MicroBatches(2, 2)
    with pytest.raises(ValueError, match="images of 3 channels"):
        parts.forward(create_model("t2t_vit_7", **T2T), paddle.zeros([5, 1, 32, 32]))


def test_wrong_size_of_the_parts_is_an_error():
    assert "CPU.MICRO_BATCH is -1 but must be 0 to 1024" in error_line("train", "CPU.MICRO_BATCH", "-1")


# --- Dropout on threads ---


def test_dropout_of_a_thread_keeps_the_rate_and_the_mean():
    layer, x = Dropout(0.3), paddle.ones([400, 500])
    with drawing_from([1, 2]):
        first, second = layer(x).numpy(), layer(x).numpy()
    with drawing_from([1, 2]):
        assert (layer(x).numpy() == first).all()
    with drawing_from([1, 3]):
        assert (layer(x).numpy() != first).any()
    assert (first != second).any()
    assert (first == 0).mean() == pytest.approx(0.3, abs=0.005)  # 4.9 standard deviations
    assert first.mean() == pytest.approx(1.0, abs=0.008)
    layer.p = 1 - 1e-9
    with drawing_from([1]):
        assert np.isfinite(layer(x).numpy()).all()


# --- Recomputing, compiling, fusing ---


@pytest.fixture
def block_calls(monkeypatch):
    """Counter of the forward passes of blocks in training: {num_queries: passes}, None for all tokens."""
    calls, forward = collections.Counter(), Block.forward

    def counted(block, x, num_queries=None):
        calls[num_queries] += block.training
        return forward(block, x, num_queries)

    monkeypatch.setattr(Block, "forward", counted)
    return calls


@pytest.mark.parametrize("size", ["0", "4"])
@pytest.mark.parametrize("config", ["lit_data", "lit_data_pit"])
def test_recomputing_is_exact(config, size, block_calls):
    pairs = ("CPU.MICRO_BATCH", size, "MODEL.DROP_RATE", "0.1")
    plain = losses(*pairs, count=2, config=config)
    passes = dict(block_calls)
    block_calls.clear()
    again = losses(*pairs, "TRAIN.RECOMPUTE", "True", count=2, config=config)
    # Every block makes a second pass, except the last one, which computes only the class token.
    assert passes[1] > 0 and block_calls == {None: 2 * passes[None], 1: passes[1]}
    assert plain[0] == again[0]
    assert all((again[1][name] == value).all() for name, value in plain[1].items())


def test_compiled_training_has_the_losses_of_the_plain_one():
    plain = losses("CPU.MICRO_BATCH", "0", "CPU.FAST_OPS", "False")
    compiled = losses("TRAIN.TO_STATIC", "True")
    assert close(compiled[0], plain[0])


def test_compiled_training_validates(tmp_path):
    # A compiled model may not be called in two threads at once.
    done = tool(
        "train", "--output", tmp_path, *few_digits(tmp_path), "TRAIN.BATCH_SIZE", 20, "TRAIN.EPOCHS", 1,
        "MODEL.T2T.DEPTH", 1, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0, "TRAIN.TO_STATIC", True,
    )  # fmt: skip
    assert (tmp_path / "lit_data/best.pdparams").is_file()
    assert "UserWarning" not in done.stderr


def test_settings_that_only_change_rounding_may_differ_on_resume(tmp_path):
    words = [
        "--output", tmp_path, *few_digits(tmp_path), "TRAIN.BATCH_SIZE", 20, "TRAIN.EPOCHS", 2,
        "MODEL.T2T.DEPTH", 1, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.COOLDOWN_EPOCHS", 0,
    ]  # fmt: skip
    tool("train", *words, "TRAIN.TIME_LIMIT", "1s")
    others = ("CPU.MICRO_BATCH", 0, "CPU.FAST_OPS", False, "TRAIN.RECOMPUTE", True)
    done = tool("train", *words, *others)
    assert "warning: CPU.FAST_OPS was True and is now False: the run is no longer bit-exact" in done.stderr
    assert "warning: CPU.MICRO_BATCH was 4 and is now 0: the run is no longer bit-exact" in done.stderr
    assert "RECOMPUTE" not in done.stderr
    assert "Epoch [2/2]" in done.stdout


@pytest.mark.parametrize("kind", ["performer", "pit"])
def test_fused_attention_is_the_same_function(kind, monkeypatch):
    monkeypatch.setattr(layers, "fits_flash_attention", lambda q: True)  # Paddle's own form for a CPU
    fused_calls, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        layers.F, "scaled_dot_product_attention", lambda *heads: fused_calls.append(1) or attention(*heads)
    )
    name, overrides = MODELS[kind]
    model = create_model(name, **overrides, qk_scale=0.3)
    model.eval()
    images = paddle.randn([2, 3, 32, 32])
    plain = gradients(model, images)
    assert not fused_calls
    layers.fuse_attention(model)
    fused = gradients(model, images)
    assert len(fused_calls) == len(model.backbone())
    assert close(fused[0], plain[0])
    assert all(close(fused[1][name], value, 1e-4) for name, value in plain[1].items())


@pytest.mark.parametrize(
    ("dtype", "width", "device", "capability", "fits"),
    [
        ("float16", 64, "gpu:0", (8, 0), True),
        ("bfloat16", 32, "gpu:1", (9, 0), True),
        ("float32", 64, "gpu:0", (8, 0), False),  # without AMP, and the validation of a run with AMP
        ("float16", 64, "gpu:0", (7, 0), False),  # V100
        ("float16", 12, "gpu:0", (8, 0), False),  # t2t_vit_14_resnext
        ("float16", 64, "cpu", None, False),
    ],
)
def test_flash_attention_is_not_used_where_it_would_fail(monkeypatch, dtype, width, device, capability, fits):
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
    q = paddle.ones([1, 2, 1, width]).astype(dtype)
    assert layers.fits_flash_attention(q) == fits
    taken = []
    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", lambda q, k, v: taken.append(q.dtype) or v)
    layer = layers.Attention(width, 1)
    layer.fused = True
    if fits or dtype == "float32":  # a CPU has no float16 products
        layer._attend(q, q, q)
    assert taken == ([q.dtype] if fits else [])
