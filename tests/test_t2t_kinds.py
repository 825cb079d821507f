"""T2T-ViT-SE, -Ghost and -Dense, and patches in place of the T2T module: what differs from a plain T2T-ViT."""

import math

import numpy as np
import official
import paddle
import pytest
from conftest import few_digits, tool
from test_fold import small_model

import convert
from t2t_vit.common.errors import UserError
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.loader import TrainLoader
from t2t_vit.models.dropout import Dropout
from t2t_vit.models.recording import inputs_of
from t2t_vit.models.t2t_blocks import DepthwiseProduct, Transition
from t2t_vit.models.zoo import create_model, list_models
from t2t_vit.training.parameters import parameter_groups
from t2t_vit.training.train_step import TrainStep
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model
from t2t_vit.weights.identify import identify
from t2t_vit.weights.load import load_pretrained
from t2t_vit.weights.model_config import with_model_of

TINY = {"T2T.EMBED_DIM": 16, "T2T.NUM_HEADS": 2, "T2T.TOKEN_DIM": 8}
KEYS = {
    "se": {"NAME": "t2t_vit_14_se", "T2T.DEPTH": 2},
    "ghost": {"NAME": "t2t_vit_16_ghost", "T2T.DEPTH": 2},
    "dense": {"NAME": "t2t_vit_dense", "T2T.DEPTH": 0, "T2T.STAGES": [1, 1], "T2T.GROWTH_RATE": 8},
    "patch": {"NAME": "t2t_vit_7", "T2T.DEPTH": 2, "T2T.TOKENS_TYPE": "patch"},
    "se with patches": {"NAME": "t2t_vit_7", "T2T.DEPTH": 2, "T2T.BLOCK": "se", "T2T.TOKENS_TYPE": "patch"},
}


def pairs(kind):
    """KEY VALUE pairs for configs/lit_data.yaml that make a tiny model of a kind."""
    return [(f"MODEL.{key}", str(value)) for key, value in {**KEYS[kind], **TINY}.items()]


def tiny(kind, **others):
    """The config of a tiny model."""
    return load_config("configs/lit_data.yaml", [*pairs(kind), ("TRAIN.BATCH_SIZE", "8"), *others.items()])


def test_a_config_gives_a_variant_blocks_of_another_kind():
    pairs = {"MODEL.NAME": "t2t_vit_dense", "MODEL.T2T.BLOCK": "se", "MODEL.T2T.DEPTH": "2", "MODEL.T2T.NUM_HEADS": "2"}
    cfg = load_config("configs/lit_data.yaml", pairs.items())
    assert [type(block).__name__ for block in build_model(cfg).blocks] == ["SqueezeExciteBlock"] * 2
    pairs = {"MODEL.NAME": "t2t_vit_14", "MODEL.T2T.BLOCK": "dense", "MODEL.T2T.STAGES": "[1, 1]",
             "MODEL.T2T.GROWTH_RATE": "8", "MODEL.T2T.DEPTH": "0"}  # fmt: skip
    cfg = load_config("configs/lit_data.yaml", pairs.items())
    assert [type(block).__name__ for block in build_model(cfg).blocks] == ["DenseBlock", "Transition", "DenseBlock"]
    with pytest.raises(UserError, match=r"block dense does not fit depth 0, stages \[1, 1\] and growth_rate 0: dense"):
        build_model(load_config("configs/lit_data.yaml", {**pairs, "MODEL.T2T.GROWTH_RATE": "0"}.items()))


# --- Patches ---


def vit(model, images):
    """Logits of a plain ViT in NumPy: patches, class token, positions, pre-norm blocks, norm, head."""
    w = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    side, heads = w["tokens_to_token.project.weight"].shape[-1], model.blocks[0].attn.num_heads
    B, Cin, H, W = images.shape
    patches = images.reshape(B, Cin, H // side, side, W // side, side).transpose(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(B, -1, Cin * side * side)
    x = patches @ w["tokens_to_token.project.weight"].reshape(-1, Cin * side * side).T
    x = x + w["tokens_to_token.project.bias"]
    x = np.concatenate([np.broadcast_to(w["cls_token"], (B, 1, x.shape[2])), x], axis=1) + w["pos_embed"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    for i in range(len(model.blocks)):
        parts = np.split(norm(x, f"blocks.{i}.norm1") @ w[f"blocks.{i}.attn.qkv.weight"], 3 * heads, axis=-1)
        q, k, v = (np.stack(parts[j * heads : (j + 1) * heads], axis=1) for j in range(3))
        attention = np.exp(q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1]))
        y = attention / attention.sum(-1, keepdims=True) @ v
        y = np.concatenate(list(y.transpose(1, 0, 2, 3)), axis=-1)
        x = x + y @ w[f"blocks.{i}.attn.proj.weight"] + w[f"blocks.{i}.attn.proj.bias"]
        y = norm(x, f"blocks.{i}.norm2") @ w[f"blocks.{i}.mlp.fc1.weight"] + w[f"blocks.{i}.mlp.fc1.bias"]
        x = x + gelu(y) @ w[f"blocks.{i}.mlp.fc2.weight"] + w[f"blocks.{i}.mlp.fc2.bias"]
    return norm(x, "norm")[:, 0] @ w["head.weight"] + w["head.bias"]


def test_with_patches_it_is_a_plain_vit():
    sizes = dict(image_size=(32, 48), embed_dim=24, depth=2, num_heads=3, num_classes=5)
    model = official.set_weights(create_model("t2t_vit_7", tokens_type="patch", **sizes))
    images = official.images(2, 48)[:, :, :32]
    expected = vit(model, images.astype(np.float64))
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_patches_take_the_place_of_the_splits():
    model = create_model("t2t_vit_14", tokens_type="patch")
    assert model.tokens_to_token.splits == [(16, 16, 0)] and model.tokens_to_token.grids == [(14, 14)]
    patches = 3 * 16 * 16 * 384 + 384
    assert sum(parameter.size for parameter in model.tokens_to_token.parameters()) == patches
    rest = official.FIGURES["t2t_vit_14"]["params_total"]
    with paddle.LazyGuard():
        module = create_model("t2t_vit_14").tokens_to_token
    rest -= sum(parameter.size for parameter in module.parameters())
    assert sum(parameter.size for parameter in model.parameters()) == patches + rest
    sizes = dict(tokens_type="patch", embed_dim=8, depth=1, num_heads=2, image_size=16)
    of_digits = create_model("t2t_vit_7", splits=((3, 1, 1), (3, 2, 1), (3, 2, 1)), **sizes)
    assert of_digits.tokens_to_token.splits == [(4, 4, 0)]
    given = create_model("t2t_vit_7", splits=[[5, 2, 1]], **sizes)  # overlapping, as a PiT's
    assert given.tokens_to_token.splits == [(5, 2, 1)] and given.tokens_to_token.grids == [(7, 7)]


def test_one_split_needs_patches_in_a_config_too():
    split = ("MODEL.T2T.SPLITS", "[[8, 8, 0]]")
    assert load_config("configs/t2t_vit_7.yaml", [split, ("MODEL.T2T.TOKENS_TYPE", "patch")])
    with pytest.raises(
        UserError, match=r"MODEL.T2T.SPLITS is \[\[8, 8, 0\]\] but must be .* \(or one, for TOKENS_TYPE"
    ):
        load_config("configs/t2t_vit_7.yaml", [split])


# --- Other blocks ---


@pytest.mark.parametrize("kind", ["se", "ghost", "dense"])
def test_class_token_of_the_last_block_is_that_of_all_tokens(kind):
    """Also if the block computes only this token: the mean of squeeze-and-excitation is that of all tokens."""
    model = small_model(kind)
    with paddle.no_grad(), inputs_of([model.blocks[-1]]) as inputs:
        logits = model(paddle.randn([2, 3, *model.image_size]))
        tokens = model.blocks[-1](inputs[0])
        np.testing.assert_allclose(logits, model.head(model.norm(tokens)[:, 0]), atol=1e-5)
    assert tokens.shape[:2] == [2, 5]


def test_stochastic_depth_of_dense_blocks_rises_by_stage():
    model = create_model("t2t_vit_dense", drop_path_rate=0.11, stages=(2, 1, 3), embed_dim=16, growth_rate=8,
                         num_heads=2)  # fmt: skip
    rates = [layer.drop_path.rate for layer in model.blocks if not isinstance(layer, Transition)]
    assert rates == pytest.approx([0, 0, 0.01, 0.02, 0.02, 0.02])  # 12 rates from 0 to 0.11: the first three
    widths = [layer.norm1.weight.shape[0] for layer in model.blocks if not isinstance(layer, Transition)]
    assert widths == [16, 24, 16, 12, 20, 28] and model.norm.weight.shape == [36]


def test_depthwise_products_start_as_pytorchs_and_decay():
    paddle.seed(0)
    model = create_model("t2t_vit_16_ghost", depth=1)
    products = [layer.weight.numpy() for layer in model.sublayers() if isinstance(layer, DepthwiseProduct)]
    assert [value.shape for value in products] == 3 * [(192, 1, 1)] + 2 * [(384, 1, 1)]
    assert all(0.9 < np.abs(value).max() <= 1 and abs(value.mean()) < 0.15 for value in products)  # uniform in +-1
    assert "blocks.0.attn.cheap_operation_q.weight" in parameter_groups(model)["decayed"]


# --- Weights ---


def shapes_of(model):
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("tokens_type", ["", "convolution", "patch"])
def test_every_t2t_vit_is_recognised_by_its_shapes(tokens_type):
    for name in list_models():
        if name.startswith("t2t"):
            overrides = {"tokens_type": tokens_type} if tokens_type else {}
            with paddle.LazyGuard():
                model = create_model(name, image_size=64, num_classes=7, in_chans=1, **overrides)
            expected = {"num_classes": 7, "in_chans": 1, "image_size": 64, **overrides}
            assert identify(shapes_of(model))[name] == expected
    assert len(identify(shapes_of(model))) == (1 if not tokens_type else 2)  # t2t_vit_24 and t2t_vit_t_24


def test_weights_of_another_size_of_patches_fit_no_variant():
    assert not identify(shapes_of(create_model("t2t_vit_7", tokens_type="patch", splits=[(8, 8, 0)], image_size=32)))


@pytest.mark.parametrize("kind", KEYS)
def test_to_pytorch_and_back_is_bit_identical(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, which reads PyTorch files, is not installed")
    cfg, config = tiny(kind), tmp_path / "x.yaml"
    config.write_text(cfg.dump())
    model = official.set_weights(build_model(cfg))
    ours, theirs, again = (tmp_path / name for name in ("a.pdparams", "b.pth", "c.pdparams"))
    checkpoint.save(ours, model.state_dict())
    for words in ((ours, "--to", "torch", "--output", theirs), (theirs, "--output", again)):
        convert.main(convert.parser().parse_args([*map(str, words), "--config", str(config)]))
    assert again.read_bytes() == ours.read_bytes()
    tree, transposed = torch.load(theirs, weights_only=True)["state_dict"], official.linear_weights(model)
    for name, value in model.state_dict().items():
        assert np.array_equal(tree[name].numpy(), value.numpy().T if name in transposed else value.numpy()), name


def test_weights_bring_their_patches_along(tmp_path, capsys):
    path = tmp_path / "vit.pdparams"
    model = official.set_weights(create_model("t2t_vit_7", tokens_type="patch", num_classes=3, image_size=64))
    paddle.save(model.state_dict(), str(path))
    cfg = load_config("configs/finetune.yaml", [("MODEL.PRETRAINED", str(path)), ("MODEL.NUM_CLASSES", "3")])
    cfg = with_model_of(cfg, path)
    assert (cfg.MODEL.NAME, cfg.MODEL.T2T.TOKENS_TYPE, cfg.DATA.IMAGE_SIZE) == ("t2t_vit_7", "patch", 64)
    load_pretrained(build_model(cfg), path)
    convert.main(convert.parser().parse_args([str(path), "--output", str(tmp_path / "again.pdparams")]))
    assert "--model t2t_vit_7, which the file fits" in capsys.readouterr().out
    with pytest.raises(UserError, match="weights of t2t_vit_7 with MODEL.T2T.TOKENS_TYPE patch, not of t2t_vit_7: "):
        load_pretrained(create_model("t2t_vit_7", num_classes=3, image_size=64), path)


# --- Training ---


@pytest.mark.parametrize("kind", KEYS)
def test_a_step_is_the_same_in_parts_and_with_recomputed_activations(kind):
    losses = []
    for words in ({}, {"TRAIN.RECOMPUTE": "True"}, {"CPU.MICRO_BATCH": "3"}):
        cfg = tiny(kind, **{"CPU.MICRO_BATCH": "0", "MODEL.DROP_PATH_RATE": "0.0", "MODEL.DROP_RATE": "0.0", **words})
        paddle.seed(1)
        step = TrainStep(cfg)
        for layer in step.model.sublayers():
            if isinstance(layer, Dropout):
                layer.p = 0.0  # of the performers
        step.train()
        batches = next(TrainLoader(load_data(cfg, ["train"])[1]["train"], cfg).epoch_steps(0))
        losses.append([step(batches, 1e-2, 0, number).loss.item() for number in range(3)])
    assert losses[0][2] < losses[0][0]
    assert losses[1] == losses[0] and losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_commands_train_validate_and_freeze_them(tmp_path):
    words = ["--output", tmp_path, *few_digits(tmp_path), *(word for pair in pairs("se with patches") for word in pair)]
    done = tool("train", *words, "TRAIN.EPOCHS", 1, "TRAIN.FREEZE", '["blocks.0.*"]', "TRAIN.LAYER_DECAY", 0.8)
    assert "lit_data final val acc is:" in tool("val", *words).stdout
    assert "frozen in 14 tensors" in done.stdout  # of the block, and pos_embed
