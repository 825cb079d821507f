"""Other ways to compute the same step: recomputed blocks, a compiled graph, fused attention."""

import collections
import signal

import paddle
import paddle.nn.functional as F
import pytest
from conftest import few_digits, tool
from resuming import at_step, send
from test_cpu import MODELS, close, gradients
from test_microbatch import losses

from t2t_vit.models import layers
from t2t_vit.models.layers import Block
from t2t_vit.models.zoo import create_model


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
    with at_step(1, 5, send(signal.SIGTERM)):
        tool("train", *words)
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
