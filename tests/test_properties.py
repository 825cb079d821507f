"""Property-based tests: what holds for every valid input, tested on generated inputs."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
import yaml
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from t2t_vit.common.errors import UserError
from t2t_vit.config import all_keys, load_config
from t2t_vit.models.soft_splits import split_grids
from t2t_vit.models.zoo import create_model
from t2t_vit.training.losses import CrossEntropy
from t2t_vit.training.schedule import learning_rate, total_epochs


def numbers(low, high):
    return st.floats(low, high, allow_subnormal=False)


def lists(element, length):
    return st.lists(element, min_size=length, max_size=length)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
FRACTION, BELOW_ONE, SWITCH = numbers(0, 1), numbers(0, 0.999), st.booleans()
SPLIT = st.integers(1, 9).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, 9), st.integers(0, k - 1)).map(list))
PAIR = st.tuples(numbers(0.01, 1), numbers(0.01, 1)).map(sorted)
NORMALIZATION = lists(numbers(0.01, 2), 3)

# Valid values of every key. load_config rejects those that exclude each other.
VALUES = {
    "NAME": NAMES, "SEED": st.integers(0, 2**31 - 1), "DEVICE": st.sampled_from(["", "cpu", "gpu", "gpu:3"]),
    "OUTPUT": NAMES, "LOG": NAMES, "CPU.MICRO_BATCH": st.integers(0, 1024), "CPU.FAST_OPS": SWITCH,
    "MODEL.NAME": NAMES, "MODEL.PRETRAINED": NAMES, "MODEL.POS_RESIZE": st.sampled_from(["bicubic", "sinusoid"]),
    "MODEL.NUM_CLASSES": st.integers(2, 10**6), "MODEL.DROP_RATE": BELOW_ONE, "MODEL.ATTN_DROP_RATE": BELOW_ONE,
    "MODEL.DROP_PATH_RATE": BELOW_ONE, "MODEL.FUSED_ATTENTION": SWITCH, "MODEL.QK_SCALE": numbers(0, 10),
    "MODEL.T2T.EMBED_DIM": st.integers(0, 1024), "MODEL.T2T.DEPTH": st.integers(0, 40),
    "MODEL.T2T.NUM_HEADS": st.integers(0, 16), "MODEL.T2T.MLP_RATIO": numbers(0, 8),
    "MODEL.T2T.STAGES": st.lists(st.integers(1, 9), max_size=4), "MODEL.T2T.GROWTH_RATE": st.integers(0, 256),
    "MODEL.T2T.BLOCK": st.sampled_from(["", "plain", "se", "ghost", "dense"]),
    "MODEL.T2T.TOKENS_TYPE": st.sampled_from(["", "performer", "transformer", "convolution", "patch"]),
    "MODEL.T2T.TOKEN_DIM": st.integers(0, 256), "MODEL.T2T.SPLITS": st.lists(SPLIT, min_size=2, max_size=4),
    "MODEL.PIT.PATCH_SIZE": st.integers(0, 64), "MODEL.PIT.STRIDE": st.integers(0, 64),
    "MODEL.PIT.BASE_DIMS": lists(st.integers(1, 64), 3), "MODEL.PIT.DEPTH": lists(st.integers(1, 9), 3),
    "MODEL.PIT.HEADS": lists(st.integers(1, 9), 3), "MODEL.PIT.MLP_RATIO": numbers(0, 8),
    "DISTILL.TYPE": st.sampled_from(["", "hard", "soft"]), "DISTILL.TEACHER": NAMES, "DISTILL.WEIGHTS": NAMES,
    "DISTILL.ALPHA": FRACTION, "DISTILL.TAU": numbers(0.1, 20),
    "DATA.NAME": NAMES, "DATA.PATH": NAMES, "DATA.VAL_FRACTION": BELOW_ONE, "DATA.TRAIN_LIST": NAMES,
    "DATA.VAL_LIST": NAMES, "DATA.CLASSES": NAMES, "DATA.CHANNELS": st.just(3), "DATA.IMAGE_SIZE": st.integers(1, 4096),
    "DATA.MEAN": NORMALIZATION, "DATA.STD": NORMALIZATION,
    "DATA.EXIF": st.sampled_from(["auto", "upright", "ignore"]), "DATA.GREY_BITS": st.integers(8, 16),
    "DATA.NUM_WORKERS": st.integers(0, 256), "DATA.READER": st.sampled_from(["turbo", "pillow"]),
    "DATA.ON_ERROR": st.sampled_from(["raise", "skip"]),
    "AUG.SCALE": PAIR, "AUG.RATIO": PAIR, "AUG.PADDED_CROP": FRACTION,
    "AUG.INTERPOLATION": st.sampled_from(["bilinear", "bicubic", "random"]), "AUG.HFLIP": FRACTION,
    "AUG.AUTO_AUGMENT": NAMES, "AUG.COLOR_JITTER": FRACTION, "AUG.ERASE_PROB": FRACTION,
    "AUG.ERASE_MODE": st.sampled_from(["pixel", "rand", "const"]), "AUG.ERASE_COUNT": st.integers(1, 100),
    "AUG.ERASE_MIXED": SWITCH, "AUG.MIXUP": numbers(0, 4), "AUG.CUTMIX": numbers(0, 4), "AUG.CUTMIX_MINMAX": PAIR,
    "AUG.MIX_PROB": FRACTION, "AUG.MIX_SWITCH_PROB": FRACTION,
    "AUG.MIX_MODE": st.sampled_from(["batch", "pair", "elem"]),
    "AUG.MIX_OFF_EPOCH": st.integers(0, 400), "AUG.REPEATS": st.integers(1, 100),
    "TRAIN.BATCH_SIZE": st.integers(1, 4096), "TRAIN.ACCUM_STEPS": st.integers(1, 64),
    "TRAIN.GLOBAL_BATCH": st.integers(0, 4096),
    "TRAIN.EPOCHS": st.integers(11, 1000), "TRAIN.COOLDOWN_EPOCHS": st.integers(0, 50),
    "TRAIN.WARMUP_EPOCHS": st.integers(0, 20), "TRAIN.OPTIMIZER": st.sampled_from(["adamw", "sgd"]),
    "TRAIN.BASE_LR": numbers(1e-5, 10), "TRAIN.WARMUP_LR": numbers(0, 1e-5), "TRAIN.MIN_LR": numbers(0, 1e-5),
    "TRAIN.BACKBONE_LR": numbers(1e-5, 10), "TRAIN.LAYER_DECAY": numbers(0.01, 1),
    "TRAIN.FREEZE": st.lists(NAMES.filter(lambda name: name.strip("!")), max_size=3),
    "TRAIN.WEIGHT_DECAY": numbers(0, 1), "TRAIN.BETAS": lists(BELOW_ONE, 2), "TRAIN.EPSILON": numbers(1e-12, 0.5),
    "TRAIN.MOMENTUM": BELOW_ONE, "TRAIN.LABEL_SMOOTHING": BELOW_ONE, "TRAIN.CLIP_NORM": numbers(0, 100),
    "TRAIN.SAMPLER": st.sampled_from(["balanced", "sqrt", ""]),
    "TRAIN.CLASS_WEIGHTS": st.sampled_from(["auto", "sqrt", ""]),
    "TRAIN.EMA_DECAY": BELOW_ONE, "TRAIN.AMP": st.sampled_from(["", "O1", "O2"]),
    "TRAIN.AMP_DTYPE": st.sampled_from(["float16", "bfloat16"]), "TRAIN.TF32": SWITCH, "TRAIN.RECOMPUTE": SWITCH,
    "TRAIN.TO_STATIC": SWITCH, "TRAIN.MAX_BAD_STEPS": st.integers(1, 99), "TRAIN.LOG_EVERY": st.integers(1, 999),
    "TRAIN.SAVE_MINUTES": numbers(0, 1000), "TRAIN.KEEP": st.integers(1, 9),
    "TRAIN.TIME_LIMIT": st.sampled_from(["", "71h30m", "90m", "30s"]),
    "VAL.BATCH_SIZE": st.integers(1, 4096), "VAL.CROP_PCT": numbers(0.1, 1),
    "VAL.INTERPOLATION": st.sampled_from(["bilinear", "bicubic"]),
    "VAL.CROP_MODE": st.sampled_from(["center", "squash"]),
    "VAL.BEST": st.sampled_from(["better", "ema", "raw"]), "VAL.EVERY": st.integers(1, 99),
    "VAL.LOG_EVERY": st.integers(1, 999), "VAL.TTA": st.sampled_from(["flip", ""]), "VAL.CLASSES_ONLY": SWITCH,
}  # fmt: skip
SOME_KEYS = st.sets(st.sampled_from(sorted(VALUES)), max_size=8).flatmap(
    lambda keys: st.fixed_dictionaries({key: VALUES[key] for key in keys})
)


# --- Config ---


def test_every_key_has_legal_values():
    assert set(VALUES) == set(all_keys())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("config")


@given(values=SOME_KEYS)
def test_config_survives_its_own_file(folder, values):
    """The config that a run writes (`cfg.dump()`) loads to an equal config."""
    (folder / "empty.yaml").write_text("{}")
    try:
        cfg = load_config(folder / "empty.yaml", list(values.items()))
    except UserError:  # two keys exclude each other
        reject()
    written = folder / "config.yaml"
    written.write_text(cfg.dump(), encoding="utf-8")
    assert load_config(written) == cfg


@given(values=SOME_KEYS)
def test_config_is_the_same_from_a_file_and_from_the_command_line(folder, values):
    tree = {}
    for key, value in values.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    path = folder / "tree.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    (folder / "empty.yaml").write_text("{}")
    words = [(key, value if isinstance(value, str) else repr(value)) for key, value in values.items()]
    try:
        by_file = load_config(path, [("NAME", "x")])
    except UserError:  # two keys exclude each other
        reject()
    assert load_config(folder / "empty.yaml", [*words, ("NAME", "x")]) == by_file


@given(key=st.sampled_from(sorted(VALUES)), word=st.text(max_size=20))
def test_any_word_is_a_value_or_an_error_that_names_the_key(key, word):
    try:
        cfg = load_config("configs/t2t_vit_7.yaml", [(key, word)])
    except UserError as error:
        assert key in str(error)
    else:
        assert cfg.is_frozen()


# --- Geometry ---

SIZES = st.tuples(st.integers(1, 80), st.integers(1, 80))
SPLITS = st.lists(SPLIT.map(tuple), min_size=2, max_size=3)


def count_windows(size, splits):
    """(height, width) after each split, by counting where a window may start; stops at an empty grid."""
    grids = []
    for kernel, stride, padding in splits:
        size = tuple(len(range(-padding, length + padding - kernel + 1, stride)) for length in size)
        grids.append(size)
        if not all(size):
            break
    return grids


@given(size=SIZES, splits=SPLITS)
def test_split_grids_count_the_windows(size, splits):
    expected = count_windows(size, splits)
    if all(expected[-1]):
        assert split_grids(size, splits) == expected
    else:
        with pytest.raises(ValueError, match="too small"):
            split_grids(size, splits)


@given(
    size=st.tuples(st.integers(8, 24), st.integers(8, 24)),
    splits=SPLITS,
    tokens=st.sampled_from(["performer", "transformer", "convolution"]),
)
@settings(max_examples=15)
def test_t2t_of_any_geometry_runs(size, splits, tokens):
    """The model has as many positions as its last grid has tokens, and computes finite logits."""
    try:
        model = create_model("t2t_vit_7", image_size=size, splits=splits, tokens_type=tokens, embed_dim=8, depth=1,
                             num_heads=2, token_dim=4, num_classes=3)  # fmt: skip
    except ValueError:  # the image is too small
        reject()
    height, width = count_windows(size, splits)[-1]
    assert model.pos_embed.shape == [1, 1 + height * width, 8]
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.randn([2, 3, *size])).numpy()
    assert logits.shape == (2, 3) and np.isfinite(logits).all()


# --- Training ---


@given(
    epochs=st.integers(1, 60),
    warmup=st.integers(0, 59),
    cooldown=st.integers(0, 9),
    base=numbers(1e-4, 1),
    start=numbers(0, 1),
    end=numbers(0, 1),
)
def test_learning_rate_rises_then_falls(epochs, warmup, cooldown, base, start, end):
    """From WARMUP_LR up to at most BASE_LR, then down to MIN_LR, never outside."""
    warmup = min(warmup, epochs - 1)
    train = SimpleNamespace(EPOCHS=epochs, WARMUP_EPOCHS=warmup, COOLDOWN_EPOCHS=cooldown, BASE_LR=base,
                            WARMUP_LR=start * base, MIN_LR=end * base)  # fmt: skip
    rates = [learning_rate(epoch, train) for epoch in range(total_epochs(train))]
    assert len(rates) == epochs + cooldown
    up, down = rates[:warmup], rates[warmup:]
    assert up == sorted(up) and down == sorted(down, reverse=True)
    assert not up or up[0] == train.WARMUP_LR
    assert warmup or down[0] == pytest.approx(base)
    assert rates[epochs:] == [train.MIN_LR] * cooldown
    assert all(min(train.WARMUP_LR, train.MIN_LR) <= rate <= base * (1 + 1e-12) for rate in rates)


@given(
    logits=lists(lists(numbers(-20, 20), 5), 3),
    labels=lists(st.integers(0, 4), 3),
    smoothing=numbers(0, 0.9),
)
def test_label_smoothing_is_cross_entropy_of_smooth_targets(logits, labels, smoothing):
    logits, labels = np.array(logits), np.array(labels)
    targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(targets * log_probabilities).sum(axis=1).mean()
    found = CrossEntropy(smoothing)(paddle.to_tensor(logits, "float32"), paddle.to_tensor(labels))
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-5)
