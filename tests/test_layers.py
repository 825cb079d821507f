"""The models consist of ordinary Paddle layers: hooks fire, Paddle counts correctly, sublayers can be replaced."""

import collections
import math

import paddle
import pytest
from paddle import nn

from t2t_vit.models import pit, t2t
from t2t_vit.models.dropout import DropPath
from t2t_vit.models.layers import Attention, Linear
from t2t_vit.models.token_layers import TokenAttention, TokenPerformer
from t2t_vit.models.zoo import create_model

T2T = dict(image_size=32, num_classes=5, embed_dim=16, depth=2, num_heads=2, token_dim=8)
PIT = dict(image_size=32, num_classes=5, patch_size=8, stride=4, base_dims=(8, 8), depth=(1, 2), heads=(1, 2))
KINDS = {
    "performer": ("t2t_vit_7", T2T),
    "transformer": ("t2t_vit_t_14", T2T),
    "convolution": ("t2t_vit_7", {**T2T, "tokens_type": "convolution"}),
    "patch": ("t2t_vit_7", {**T2T, "tokens_type": "patch"}),
    "se": ("t2t_vit_14_se", {**T2T, "embed_dim": 128}),  # 8 channels between its two layers: not all are 0
    "ghost": ("t2t_vit_16_ghost", T2T),
    "dense": ("t2t_vit_dense", {**T2T, "depth": 0, "stages": (1, 2), "growth_rate": 8}),
    "pit": ("pit_ti", PIT),
    "distilled pit": ("pit_ti_distilled", PIT),
}


def small_model(kind):
    paddle.seed(5)
    name, options = KINDS[kind]
    return create_model(name, **options)


def forward_calls(model, images):
    """{name of a sublayer without sublayers: how many forward hooks fired}."""
    calls = collections.Counter({name: 0 for name, layer in model.named_sublayers() if not layer.sublayers()})
    for name, layer in model.named_sublayers():
        if name in calls:
            layer.register_forward_post_hook(lambda layer, inputs, y, name=name: calls.update([name]))
    model(images)
    return calls


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_every_layer_fire(kind, mode):
    model = small_model(kind)
    getattr(model, mode)()
    calls = forward_calls(model, paddle.randn([2, 3, 32, 32]))
    assert len(calls) > 20 and not [name for name, count in calls.items() if count == 0]
    shared = ("drop", "drop_path", "mlp.act") if kind == "ghost" else ("drop", "drop_path")
    assert {count for name, count in calls.items() if not name.endswith(shared)} == {1}


def test_every_sublayer_is_a_plain_layer():
    plain = (nn.Linear, nn.LayerNorm, nn.Conv1D, nn.Conv2D, nn.GELU, nn.ReLU, nn.Sigmoid, nn.Dropout, DropPath)
    for kind in KINDS:
        leaves = [layer for layer in small_model(kind).sublayers() if not layer.sublayers()]
        assert all(isinstance(layer, plain) for layer in leaves)


# --- Paddle's own counts ---

# Published GMACs without attention: the official T2T-ViT and PaddleViT tables, which count every token in every layer.
PUBLISHED = {
    "t2t_vit_7": 1.01, "t2t_vit_10": 1.32, "t2t_vit_12": 1.52, "t2t_vit_14": 4.37, "t2t_vit_14_384": 12.79,
    "t2t_vit_14_resnext": 4.37, "t2t_vit_14_wide": 4.99, "t2t_vit_19": 7.82, "t2t_vit_24": 12.71,
    "pit_ti": 0.50, "pit_xs": 1.09, "pit_s": 2.42, "pit_b": 10.54,
    "pit_ti_distilled": 0.50, "pit_xs_distilled": 1.10, "pit_s_distilled": 2.44, "pit_b_distilled": 10.61,
}  # fmt: skip


def block_macs(N, C, mlp_ratio, outputs):
    """Of a block with N tokens, whose projection and MLP run on `outputs` of them."""
    return N * 3 * C * C + outputs * (C * C + 2 * int(C * mlp_ratio) * C)


def module_macs(size, C):
    """(what paddle.flops counts of a T2T module, the products of its performers)."""
    side, E, m = size // 4, 64, 32
    tokens = [side**2, (side // 2) ** 2]
    counted = sum(n * E * (3 * width + 3 * E) for n, width in zip(tokens, (3 * 7 * 7, E * 3 * 3)))
    return counted + (side // 4) ** 2 * E * 9 * C, 4 * m * E * sum(tokens)


def t2t_macs(name, size):
    """(what paddle.flops counts, what the published figures count besides) of a T2T-ViT with token layers."""
    variant = t2t.VARIANTS[name]
    C, ratio, N = variant["embed_dim"], variant["mlp_ratio"], 1 + (size // 16) ** 2
    counted, performer = module_macs(size, C)
    counted += (variant["depth"] - 1) * block_macs(N, C, ratio, N) + block_macs(N, C, ratio, 1) + C * 1000
    return counted, performer + block_macs(N, C, ratio, N - 1) - block_macs(N, C, ratio, 0)


def other_t2t_macs(name, size):
    """What paddle.flops counts of a T2T-ViT-SE, -Ghost or -Dense. The last block computes one token, or one MLP."""
    N = 1 + (size // 16) ** 2
    if name == "t2t_vit_dense":
        counted, width = module_macs(size, 128)[0], 128
        for stage, depth in enumerate((3, 6, 6, 4)):
            if stage:
                counted += N * width * width // 2
                width //= 2
            for i in range(depth):
                counted += block_macs(N, width, 2, 1 if (stage, i) == (3, 3) else N)
                counted += (1 if (stage, i) == (3, 3) else N) * width * 64
                width += 64
        return counted + width * 1000
    C, counted = 384, module_macs(size, 384)[0] + 384 * 1000
    if name == "t2t_vit_14_se":
        return counted + 14 * (N * 4 * C * C + 2 * C * C // 16) + (13 * N + 1) * 6 * C * C
    inputs, outputs = 3 * C * C // 2 + 3 * C // 2, C * C + C * C + 2 * C + 3 * C * C  # of a token: q, k, v; the rest
    return counted + 16 * N * inputs + (15 * N + 1) * outputs


def pit_macs(name, size):
    """The same of a PiT. paddle.flops counts the bias of a convolution as well."""
    variant = pit.VARIANTS[name]
    T, patch = 1 + variant["distilled"], variant["patch_size"]
    widths = [width * heads for width, heads in zip(variant["base_dims"], variant["heads"])]
    side = (size - patch) // variant["stride"] + 1
    counted = side**2 * widths[0] * (3 * patch**2 + 1) + T * widths[-1] * 1000
    for stage, (C, depth) in enumerate(zip(widths, variant["depth"])):
        if stage:
            side = (side + 1) // 2
            counted += side**2 * C * (3 * 3 + 1) + T * widths[stage - 1] * C
        N = T + side**2
        counted += depth * block_macs(N, C, 4.0, N)
    skipped = block_macs(N, C, 4.0, N) - block_macs(N, C, 4.0, T)
    return counted - skipped, skipped


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_macs_are_those_counted_here(name):
    macs, size = (pit_macs, 224) if name.startswith("pit") else (t2t_macs, t2t.VARIANTS[name].get("image_size", 224))
    assert sum(macs(name, size)) / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)


# One of each kind: their depths and widths are those of the zoo, which test_models.py compares with the official ones.
@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_resnext", "t2t_vit_14_se",
                                  "t2t_vit_16_ghost", "t2t_vit_dense", "pit_ti", "pit_xs_distilled"])  # fmt: skip
def test_paddle_counts_all_parameters_and_operations(name):
    model = create_model(name, image_size=64)
    # paddle.summary leaves out the parameters that the model itself holds: the class token and the positions.
    held = [parameter for name, parameter in model.named_parameters() if "." in name]
    summary = paddle.summary(model, (1, 3, 64, 64))
    assert summary["total_params"] == sum(math.prod(parameter.shape) for parameter in held)
    trained = [parameter for parameter in held if not parameter.stop_gradient]
    assert summary["trainable_params"] == sum(math.prod(parameter.shape) for parameter in trained)
    if "block" in t2t.VARIANTS.get(name, {}):
        macs = other_t2t_macs(name, 64)
    else:  # a token transformer has the same linear layers as a performer
        macs, _ = pit_macs(name, 64) if name.startswith("pit") else t2t_macs(name.replace("_t_", "_"), 64)
    assert paddle.flops(model, [1, 3, 64, 64]) == macs


# --- Replaced sublayers ---


class Lora(nn.Layer):
    """A linear layer that is frozen, and a trained product of rank 2 beside it (Hu et al., 2021)."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        for parameter in base.parameters():
            parameter.stop_gradient = True
        inner, columns = base.weight.shape
        self.down = nn.Linear(inner, 2, bias_attr=False)
        self.up = nn.Linear(2, columns, bias_attr=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_learns_through_lora_layers(kind):
    model = small_model(kind)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    for layer in model.sublayers():
        if isinstance(layer, (Attention, TokenAttention, TokenPerformer)):
            for name in {"qkv", "kqv", "q", "k", "v"} & {name for name, _ in layer.named_children()}:
                setattr(layer, name, Lora(getattr(layer, name)))
    logits = model(paddle.randn([2, 3, 32, 32]))
    (sum(logits) if isinstance(logits, tuple) else logits).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith((".down.weight", ".up.weight"))}
    for name, parameter in model.named_parameters():
        assert name not in trained or float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_replaced_layer_is_used(kind):
    """Each linear layer, norm, convolution and activation in turn: a layer that returns zeros changes the logits."""
    model = small_model(kind)
    model.eval()
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
    images = paddle.randn([1, 3, 32, 32])
    with paddle.no_grad():
        expected = model(images).numpy()
        for name, layer in list(model.named_sublayers()):
            if not isinstance(layer, (nn.Linear, nn.LayerNorm, nn.Conv1D, nn.Conv2D, nn.GELU, nn.ReLU, nn.Sigmoid)):
                continue
            parent, _, attribute = name.rpartition(".")
            owner = dict(model.named_sublayers())[parent] if parent else model
            setattr(owner, attribute, Zeros(layer))
            assert (model(images).numpy() != expected).any(), name
            setattr(owner, attribute, layer)
        assert (model(images).numpy() == expected).all()


class Zeros(nn.Layer):
    """Zeros in the shape of another layer's output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return paddle.zeros_like(self.layer(x))


def test_linear_layers_are_built_as_paddles():
    assert Linear(3, 2, bias_attr=False).bias is None
    paddle.seed(0)
    ours = Linear(30, 20)
    paddle.seed(0)
    theirs = nn.Linear(30, 20)
    x = paddle.randn([4, 30])
    assert (ours.weight.numpy() == theirs.weight.numpy()).all()
    assert abs(ours(x).numpy() - theirs(x).numpy()).max() < 1e-6


def test_a_model_can_be_compiled_by_its_user():
    """With the defaults of paddle.jit.to_static, which breaks the graph at code that it cannot convert."""
    small = {**T2T, "depth": 1, "image_size": 16, "splits": ((4, 2, 1), (3, 2, 1))}  # with one token layer
    model, images = create_model("t2t_vit_7", **small), paddle.randn([2, 3, 16, 16])
    model.eval()
    with paddle.no_grad():
        expected = model(images)
        compiled = paddle.jit.to_static(model)(images)
    assert (compiled - expected).abs().max() < 1e-5
