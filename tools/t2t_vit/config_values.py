"""Set and check config values, and accept keys that were renamed. Does not import paddle."""

from __future__ import annotations

import difflib
import functools
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError, counted

# {old key: new key}. Old keys are still accepted in YAML files, run folders, states and on the command line.
RENAMED = {"DATA.VAL_SHARE": "DATA.VAL_FRACTION"}
_OLD_CLASS_LIST = "configs/imagenet1k_classes.tsv"

# (allowed range for error messages, test of a number, keys). In a list, every number must pass the test.
_NUMBERS = [
    ("finite", lambda x: True, "DATA.MEAN"),
    ("0 or more", lambda x: x >= 0,
     "MODEL.QK_SCALE AUG.MIXUP AUG.CUTMIX AUG.MIX_OFF_EPOCH TRAIN.GLOBAL_BATCH TRAIN.COOLDOWN_EPOCHS "
     "TRAIN.WARMUP_EPOCHS TRAIN.WARMUP_LR TRAIN.MIN_LR TRAIN.BACKBONE_LR TRAIN.WEIGHT_DECAY TRAIN.CLIP_NORM "
     "TRAIN.SAVE_MINUTES"),
    ("above 0", lambda x: x > 0, "DISTILL.TAU TRAIN.BASE_LR"),
    ("1e-06 or more", lambda x: x >= 1e-6, "DATA.STD"),
    ("1 or more", lambda x: x >= 1,
     "TRAIN.BATCH_SIZE TRAIN.ACCUM_STEPS TRAIN.EPOCHS TRAIN.MAX_BAD_STEPS TRAIN.LOG_EVERY TRAIN.KEEP VAL.BATCH_SIZE "
     "VAL.EVERY VAL.LOG_EVERY"),
    ("in [0, 1)", lambda x: 0 <= x < 1,
     "MODEL.DROP_RATE MODEL.ATTN_DROP_RATE MODEL.DROP_PATH_RATE DATA.VAL_FRACTION TRAIN.BETAS TRAIN.MOMENTUM "
     "TRAIN.LABEL_SMOOTHING TRAIN.EMA_DECAY"),
    ("0 to 1", lambda x: 0 <= x <= 1,
     "DISTILL.ALPHA AUG.PADDED_CROP AUG.HFLIP AUG.COLOR_JITTER AUG.ERASE_PROB AUG.CUTMIX_MINMAX AUG.MIX_PROB "
     "AUG.MIX_SWITCH_PROB"),
    ("in (0, 1)", lambda x: 0 < x < 1, "TRAIN.EPSILON"),
    ("in (0, 1]", lambda x: 0 < x <= 1, "TRAIN.LAYER_DECAY"),
    ("1e-06 to 1", lambda x: 1e-6 <= x <= 1, "AUG.SCALE"),
    ("0.1 to 1", lambda x: 0.1 <= x <= 1, "VAL.CROP_PCT"),
    ("0.01 to 100", lambda x: 0.01 <= x <= 100, "AUG.RATIO"),
    ("1 to 100", lambda x: 1 <= x <= 100, "AUG.ERASE_COUNT AUG.REPEATS"),
    ("8 to 16", lambda x: 8 <= x <= 16, "DATA.GREY_BITS"),
    ("0 to 256", lambda x: 0 <= x <= 256, "DATA.NUM_WORKERS"),
    ("0 to 1024", lambda x: 0 <= x <= 1024, "CPU.MICRO_BATCH"),
    ("0 to 4096", lambda x: 0 <= x <= 4096, "DATA.IMAGE_SIZE"),
    ("0 to 65536", lambda x: 0 <= x <= 65536,
     "MODEL.T2T.EMBED_DIM MODEL.T2T.DEPTH MODEL.T2T.NUM_HEADS MODEL.T2T.MLP_RATIO MODEL.T2T.TOKEN_DIM "
     "MODEL.T2T.GROWTH_RATE "
     "MODEL.PIT.PATCH_SIZE MODEL.PIT.STRIDE MODEL.PIT.MLP_RATIO MODEL.NUM_CLASSES"),
    ("0 to 2147483647", lambda x: 0 <= x <= 2147483647, "SEED"),
]  # fmt: skip
_CHOICES = {
    "MODEL.POS_RESIZE": ("bicubic", "sinusoid"),
    "DISTILL.TYPE": ("hard", "soft", ""),
    "DATA.CHANNELS": (0, 1, 3),
    "DATA.EXIF": ("auto", "upright", "ignore"),
    "DATA.READER": ("turbo", "pillow"),
    "DATA.ON_ERROR": ("raise", "skip"),
    "AUG.INTERPOLATION": ("bilinear", "bicubic", "random"),
    "AUG.ERASE_MODE": ("pixel", "rand", "const"),
    "AUG.MIX_MODE": ("batch", "pair", "elem"),
    "TRAIN.OPTIMIZER": ("adamw", "sgd"),
    "TRAIN.SAMPLER": ("balanced", "sqrt", ""),
    "TRAIN.CLASS_WEIGHTS": ("auto", "sqrt", ""),
    "TRAIN.AMP": ("O1", "O2", ""),
    "TRAIN.AMP_DTYPE": ("float16", "bfloat16"),
    "VAL.INTERPOLATION": ("bilinear", "bicubic"),
    "VAL.CROP_MODE": ("center", "squash"),
    "VAL.TTA": ("flip", "five", "ten", ""),
    "VAL.BEST": ("better", "ema", "raw"),
}


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the (key, value) pairs of nested mappings, such as ("TRAIN.EPOCHS", 300)."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_of(tree: Any, key: str) -> Any:
    """Return the value of a key such as TRAIN.EPOCHS in nested mappings; None if it is missing."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def set_value(cfg: CfgNode, key: str, value: Any, source: str | Path) -> None:
    """Set a key to a value from `source` (for messages). Raises UserError for an unknown key or a wrong type."""
    if key in RENAMED:
        _note(f"note: {key} is now called {RENAMED[key]}")
        key = RENAMED[key]
    if key == "DATA.CLASSES" and str(value).endswith(_OLD_CLASS_LIST) and not os.path.exists(value):
        _note(f"note: DATA.CLASSES {_OLD_CLASS_LIST} is now called imagenet1k")
        value = "imagenet1k"
    if key == "MODEL.QK_SCALE" and value in (None, "None"):  # as in PaddleViT's configs
        value = 0.0
    known = [name for name, _ in leaves(cfg)]
    if key not in known:
        raise _unknown(key, known, source)
    before = value_of(cfg, key)
    try:
        if value is None or isinstance(value, dict):
            raise ValueError
        put(cfg, key, value)
        if value_of(cfg, key) is None:  # yacs reads the word None as None for every type except str
            raise ValueError
    except (ValueError, RecursionError, MemoryError):  # Python's parser raises the last two for deeply nested text
        kind = type(before).__name__
        hint = f" (write {value}.0)" if kind == "float" and str(value).lstrip("-").isdigit() else ""
        hint = f' (write "{value}")' if kind == "str" and isinstance(value, (int, float)) else hint
        raise UserError(f"{source}: {key} must be of type {kind}{hint}, not {value!r:.200}") from None


def put(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a key. Raises ValueError if the value has the wrong type."""
    *sections, leaf = key.split(".")
    node = functools.reduce(getattr, sections, cfg)
    if isinstance(node[leaf], str) and isinstance(value, str):
        node[leaf] = value  # yacs would turn a folder named 2012 into a number
    else:
        cfg.merge_from_list([key, value])


@functools.cache  # print once, even if configs are loaded often
def _note(text):
    if ranks.is_main():
        print(text, file=sys.stderr)


def _unknown(key, known, source):
    """Return a UserError for an unknown key that suggests similar ones."""
    near = difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.5)
    near += [k for k in known if k.split(".")[-1] == key.split(".")[-1].upper() and k not in near]
    hint = f"did you mean {', '.join(near)}?" if near else "tools/t2t_vit/config.py lists the keys"
    return UserError(f"{source}: unknown key {key}; {hint}")


def fit_short_run(train: CfgNode, file: Collection[str], command_line: Collection[str]) -> str:
    """Shorten a warm-up and a cool-down that are too long for TRAIN.EPOCHS. Returns a line about it, or "".

    Those that are set where EPOCHS is set stay as they are.

    Args:
        train: the TRAIN section of a config.
        file: keys that the config file sets.
        command_line: keys that the command line sets; they win over the file, which wins over the defaults.
    """
    sources = {key: 2 * (key in command_line) or (key in file) for key in (f"TRAIN.{name}" for name in train)}
    changes = []
    for name, part in (("WARMUP_EPOCHS", 3), ("COOLDOWN_EPOCHS", 10)):
        before, longest = train[name], max(0, train.EPOCHS // part)
        if before > longest and sources[f"TRAIN.{name}"] < sources["TRAIN.EPOCHS"]:
            train[name] = longest
            changes.append(f"TRAIN.{name} {longest} instead of {before}")
    return f"short run, TRAIN.EPOCHS {train.EPOCHS}: {', '.join(changes)}" if changes else ""


def accumulation(cfg: CfgNode, processes: int) -> int:
    """Return the forward passes per training step: ACCUM_STEPS, or as many as GLOBAL_BATCH requires.

    Raises UserError if GLOBAL_BATCH is not a multiple of BATCH_SIZE * `processes`. The message names values that work.
    """
    batch, total = cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.GLOBAL_BATCH
    if not total:
        return cfg.TRAIN.ACCUM_STEPS
    images = batch * processes
    if total % images:
        fitting = [size for size in range(1, batch + 1) if total % (size * processes) == 0]
        hint = f"set TRAIN.BATCH_SIZE {fitting[-1]}" if fitting else "set another number of processes"
        raise UserError(
            f"TRAIN.GLOBAL_BATCH {total} is not a multiple of TRAIN.BATCH_SIZE {batch} x "
            f"{counted(processes, 'process')}; {hint}, or TRAIN.GLOBAL_BATCH {-(-total // images) * images}"
        )
    return total // images


# --- Allowed values ---


def check(cfg: CfgNode) -> None:
    """Raise UserError for the first key whose value is not allowed."""
    for key, holds, allowed in _rules(cfg):
        if not holds:
            raise UserError(f"{key} is {value_of(cfg, key)!r:.200} but must be {allowed}")


def _rules(cfg):
    """Yield (key, whether its value is allowed, what is allowed) for every rule."""
    for allowed, is_allowed, keys in _NUMBERS:
        for key in keys.split():
            value = value_of(cfg, key)
            numbers = value if isinstance(value, (list, tuple)) else [value]
            yield key, all(_is_finite(number) and is_allowed(number) for number in numbers), allowed
    for key, choices in _CHOICES.items():
        named = [str(choice) if choice != "" else '""' for choice in choices]
        yield key, value_of(cfg, key) in choices, f"{', '.join(named[:-1])} or {named[-1]}"
    yield from _other_rules(cfg)


def to_seconds(text: str) -> int:
    """Convert a time such as 71h30m, 90m or 30s to seconds; any other text gives 0."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1))) if match else 0


def _is_finite(number):
    return type(number) in (int, float) and abs(number) <= sys.float_info.max


def _is_pair(values):
    return len(values) == 2 and values[0] <= values[1]


def _is_split(split):
    is_triple = isinstance(split, (list, tuple)) and len(split) == 3 and {type(number) for number in split} == {int}
    return is_triple and split[0] >= 1 and split[1] >= 1 and 0 <= split[2] < split[0]


def _other_rules(cfg):
    """List the rules that depend on several keys or check a text: (key, whether it holds, what is allowed)."""
    model, distill, data, aug, train, lr = cfg.MODEL, cfg.DISTILL, cfg.DATA, cfg.AUG, cfg.TRAIN, cfg.TRAIN.BACKBONE_LR
    per_channel = f"a list of {counted(data.CHANNELS, 'number')}, one per channel"
    return [
        ("NAME", cfg.NAME not in (".", "..") and not re.search(r"[/\0]", cfg.NAME), "a plain name without a path"),
        ("NAME", cfg.NAME != "pretrained", "another name: output/pretrained contains the published runs"),
        *((key, value_of(cfg, key), "a folder") for key in ("OUTPUT", "LOG", "DATA.PATH")),
        ("DEVICE", re.fullmatch(r"(cpu|gpu(:[0-9]+)?)?", cfg.DEVICE), "cpu, gpu or gpu:N"),
        ("MODEL.NUM_CLASSES", model.NUM_CLASSES != 1, "2 or more, or 0"),
        ("MODEL.FUSED_ATTENTION", not (model.FUSED_ATTENTION and model.ATTN_DROP_RATE),
         "False if MODEL.ATTN_DROP_RATE is set: FlashAttention has no dropout here"),
        ("MODEL.T2T.SPLITS", (len(model.T2T.SPLITS) != 1 or model.T2T.TOKENS_TYPE == "patch")
         and all(map(_is_split, model.T2T.SPLITS)),
         "[] or two or more [kernel, stride, padding] with padding below kernel (or one, for TOKENS_TYPE patch)"),
        *((key, all(type(n) is int and 1 <= n <= 65536 for n in value_of(cfg, key)), "a list of 1 to 65536")
          for key in ("MODEL.T2T.STAGES", "MODEL.PIT.BASE_DIMS", "MODEL.PIT.DEPTH", "MODEL.PIT.HEADS")),
        ("DISTILL.TEACHER", distill.TEACHER or not distill.TYPE, f"a model or config for DISTILL.TYPE {distill.TYPE}"),
        ("DATA.VAL_FRACTION", not data.VAL_FRACTION or not (data.TRAIN_LIST or data.VAL_LIST),
         "0.0 if DATA.TRAIN_LIST or DATA.VAL_LIST is set, which list the images of a split"),
        *((f"DATA.{key}", not (data[key] and data.CHANNELS) or len(data[key]) == data.CHANNELS, per_channel)
          for key in ("MEAN", "STD")),
        *((f"AUG.{key}", _is_pair(aug[key]), "[smallest, largest]") for key in ("SCALE", "RATIO")),
        ("AUG.CUTMIX_MINMAX", not aug.CUTMIX_MINMAX or _is_pair(aug.CUTMIX_MINMAX), "[] or [smallest, largest]"),
        ("AUG.CUTMIX", aug.CUTMIX > 0 or not aug.CUTMIX_MINMAX, "above 0.0 if AUG.CUTMIX_MINMAX is set"),
        ("TRAIN.WARMUP_EPOCHS", train.WARMUP_EPOCHS < train.EPOCHS, f"below TRAIN.EPOCHS {train.EPOCHS}"),
        ("TRAIN.WARMUP_LR", train.WARMUP_LR <= train.BASE_LR, f"at most TRAIN.BASE_LR {train.BASE_LR}"),
        ("TRAIN.MIN_LR", train.MIN_LR <= train.BASE_LR, f"at most TRAIN.BASE_LR {train.BASE_LR}"),
        ("TRAIN.BACKBONE_LR", lr == 0 or lr >= train.MIN_LR, f"0.0, or TRAIN.MIN_LR {train.MIN_LR} or more"),
        ("TRAIN.BACKBONE_LR", lr == 0 or not train.WARMUP_EPOCHS or lr >= train.WARMUP_LR,
         f"0.0, or TRAIN.WARMUP_LR {train.WARMUP_LR} or more"),
        ("TRAIN.FREEZE", all(isinstance(pattern, str) and pattern.lstrip("!") for pattern in train.FREEZE),
         'a list of patterns such as ["blocks.0.*", "!head*"]'),
        ("TRAIN.CLASS_WEIGHTS", not (train.CLASS_WEIGHTS and train.SAMPLER),
         f'"" if TRAIN.SAMPLER is set ({train.SAMPLER}): each of them evens out the classes'),
        ("TRAIN.BETAS", len(train.BETAS) == 2, "two numbers"),
        ("TRAIN.TF32", not (train.TF32 and train.TO_STATIC),
         "False if TRAIN.TO_STATIC is True, which would also round the performer's exponents"),
        ("VAL.TTA", cfg.VAL.CROP_MODE == "center" or cfg.VAL.TTA in ("", "flip"),
         'flip or "" if VAL.CROP_MODE is squash, which leaves nothing to crop'),
        ("TRAIN.TIME_LIMIT", not train.TIME_LIMIT or to_seconds(train.TIME_LIMIT), "a time such as 71h30m, 90m or 30s"),
    ]  # fmt: skip
