"""Options and config keys of other T2T-ViT and PiT programs, and their names here (docs/migrating.md).

Options with an equivalent here are rewritten, and a line on stderr shows the new command. A config file with keys of
another program is refused, and the error names our keys.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from t2t_vit.common import ranks
from t2t_vit.common.errors import printable

# {their option (with - for _): ours}. {} stands for the value; without {}, the option has no value.
OPTIONS = {
    # PaddleViT and paddle_pit
    "cfg": "--config {}",
    "image-size": "DATA.IMAGE_SIZE {}",
    "batch-size-eval": "VAL.BATCH_SIZE {}",
    "save-path": "--output {}",
    "img-path": "{}",
    "amp": "TRAIN.AMP O1",
    "accum-iter": "TRAIN.ACCUM_STEPS {}",
    "teacher-model": "DISTILL.WEIGHTS {}",
    "teacher-model-path": "DISTILL.WEIGHTS {}",
    # MindSpore; its config keys (below) are also options
    "config-path": "--config {}",
    "data-url": "--data-path {}",
    "checkpoint": "--pretrained {}",
    "arch": "--config configs/{}.yaml",
    "extra": "",
    # official T2T-ViT
    "model": "--config configs/{}.yaml",
    "b": "--batch-size {}",
    "lr": "TRAIN.BASE_LR {}",
    "img-size": "DATA.IMAGE_SIZE {}",
    "eval-checkpoint": "--pretrained {}",
    "transfer-model": "--pretrained {}",
    "cooldown-epochs": "TRAIN.COOLDOWN_EPOCHS {}",
    "warmup-epochs": "TRAIN.WARMUP_EPOCHS {}",
    "opt": "TRAIN.OPTIMIZER {}",
    "clip-grad": "TRAIN.CLIP_NORM {}",
    "model-ema-decay": "TRAIN.EMA_DECAY {}",
    "j": "DATA.NUM_WORKERS {}",
    "aa": "AUG.AUTO_AUGMENT {}",
    "color-jitter": "AUG.COLOR_JITTER {}",
    "reprob": "AUG.ERASE_PROB {}",
    "smoothing": "TRAIN.LABEL_SMOOTHING {}",
    "train-interpolation": "AUG.INTERPOLATION {}",
    "interpolation": "VAL.INTERPOLATION {}",
    "log-interval": "TRAIN.LOG_EVERY {}",
}

_ALL_EPOCHS = "TRAIN.EPOCHS, and set TRAIN.COOLDOWN_EPOCHS 0 if this is the total number of epochs"
_ROOT = "DATA.PATH, the folder above train/ and val/"
# {their config key: our key, or an explanation (a text with spaces)}.
KEYS = {
    # T2T_paddle
    "DATA_PATH.TRAIN_DATASET_PATH": _ROOT, "DATA_PATH.VAL_DATASET_PATH": _ROOT,
    "DATA_PATH.TRAIN_DATASET_LABEL_PATH": "DATA.TRAIN_LIST", "DATA_PATH.VAL_DATASET_LABEL_PATH": "DATA.VAL_LIST",
    "MODEL_PATH": "MODEL.PRETRAINED", "TRAIN.TRAIN_BATCH_SIZE": "TRAIN.BATCH_SIZE",
    "TRAIN.VAL_BATCH_SIZE": "VAL.BATCH_SIZE", "TRAIN.TRAIN_NUM_WORKS": "DATA.NUM_WORKERS",
    "TRAIN.VAL_NUM_WORKS": "DATA.NUM_WORKERS", "SCHEDULER.NUM_EPOCHS": _ALL_EPOCHS,
    "SCHEDULER.WEIGHT_DECAY": "TRAIN.WEIGHT_DECAY", "SCHEDULER.BASE_LR": "TRAIN.BASE_LR",
    "SCHEDULER.WARMUP_EPOCHS": "TRAIN.WARMUP_EPOCHS", "SCHEDULER.WARMUP_START_LR": "TRAIN.WARMUP_LR",
    "SCHEDULER.END_LR": "TRAIN.MIN_LR",
    # PaddleViT and paddle_pit
    "DATA.BATCH_SIZE": "TRAIN.BATCH_SIZE", "DATA.BATCH_SIZE_EVAL": "VAL.BATCH_SIZE", "DATA.DATA_PATH": "DATA.PATH",
    "DATA.DATASET": "DATA.NAME", "DATA.CROP_PCT": "VAL.CROP_PCT", "DATA.IMAGENET_MEAN": "DATA.MEAN",
    "DATA.IMAGENET_STD": "DATA.STD", "MODEL.TYPE": "MODEL.NAME, such as t2t_vit_7 or pit_ti",
    "MODEL.DISTILL": "MODEL.NAME, such as pit_ti_distilled", "MODEL.DROPOUT": "MODEL.DROP_RATE",
    "MODEL.ATTENTION_DROPOUT": "MODEL.ATTN_DROP_RATE", "MODEL.DROPPATH": "MODEL.DROP_PATH_RATE",
    "MODEL.DROP_PATH": "MODEL.DROP_PATH_RATE", "MODEL.EMBED_DIM": "MODEL.T2T.EMBED_DIM",
    "MODEL.DEPTH": "MODEL.T2T.DEPTH, or MODEL.PIT.DEPTH of a PiT",
    "MODEL.NUM_HEADS": "MODEL.T2T.NUM_HEADS, or MODEL.PIT.HEADS of a PiT",
    "MODEL.MLP_RATIO": "MODEL.T2T.MLP_RATIO, or MODEL.PIT.MLP_RATIO of a PiT",
    "MODEL.PATCH_SIZE": "MODEL.PIT.PATCH_SIZE", "MODEL.STRIDE": "MODEL.PIT.STRIDE",
    "MODEL.BASE_DIMS": "MODEL.PIT.BASE_DIMS", "MODEL.TRANS.QK_SCALE": "MODEL.QK_SCALE",
    "MODEL.TRANS.PATCH_SIZE": "MODEL.PIT.PATCH_SIZE", "MODEL.TRANS.STRIDE": "MODEL.PIT.STRIDE",
    "MODEL.TRANS.BASE_DIMS": "MODEL.PIT.BASE_DIMS", "MODEL.TRANS.HEADS": "MODEL.PIT.HEADS",
    "MODEL.TRANS.DEPTH": "MODEL.PIT.DEPTH, or MODEL.T2T.DEPTH of a T2T-ViT",
    "MODEL.TRANS.TOKEN_TYPE": "MODEL.T2T.TOKENS_TYPE", "MODEL.TRANS.EMBED_DIM": "MODEL.T2T.EMBED_DIM",
    "MODEL.TRANS.NUM_HEADS": "MODEL.T2T.NUM_HEADS", "MODEL.TRANS.MLP_RATIO": "MODEL.T2T.MLP_RATIO",
    "TRAIN.NUM_EPOCHS": _ALL_EPOCHS, "TRAIN.WARMUP_START_LR": "TRAIN.WARMUP_LR", "TRAIN.END_LR": "TRAIN.MIN_LR",
    "TRAIN.ACCUM_ITER": "TRAIN.ACCUM_STEPS", "TRAIN.GRAD_CLIP": "TRAIN.CLIP_NORM",
    "TRAIN.SMOOTHING": "TRAIN.LABEL_SMOOTHING", "TRAIN.MODEL_EMA_DECAY": "TRAIN.EMA_DECAY",
    "TRAIN.LINEAR_SCALED_LR": "TRAIN.BASE_LR, which is never scaled by the batch",
    "TRAIN.OPTIMIZER.NAME": "TRAIN.OPTIMIZER, adamw or sgd", "TRAIN.OPTIMIZER.EPS": "TRAIN.EPSILON",
    "TRAIN.OPTIMIZER.BETAS": "TRAIN.BETAS", "TRAIN.OPTIMIZER.MOMENTUM": "TRAIN.MOMENTUM",
    "TRAIN.MIXUP_ALPHA": "AUG.MIXUP", "TRAIN.CUTMIX_ALPHA": "AUG.CUTMIX", "TRAIN.CUTMIX_MINMAX": "AUG.CUTMIX_MINMAX",
    **{f"{part}.MIXUP_{key}": f"AUG.MIX_{key}" for part in ("TRAIN", "AUG") for key in ("PROB", "SWITCH_PROB", "MODE")},
    "TRAIN.COLOR_JITTER": "AUG.COLOR_JITTER", "TRAIN.AUTO_AUGMENT": "AUG.AUTO_AUGMENT original, or empty for none",
    "TRAIN.RAND_AUGMENT": "AUG.AUTO_AUGMENT rand-m9-mstd0.5-inc1, or empty for none",
    **{f"TRAIN.RANDOM_ERASE_{key}": f"AUG.ERASE_{key}" for key in ("PROB", "MODE", "COUNT")},
    **{f"AUG.RE_{key}": f"AUG.ERASE_{key}" for key in ("PROB", "MODE", "COUNT")},
    **{f"TRAIN.DISTILLATION_{key}": f"DISTILL.{key}" for key in ("TYPE", "ALPHA", "TAU")},
    "SAVE": "OUTPUT", "REPORT_FREQ": "TRAIN.LOG_EVERY", "VALIDATE_FREQ": "VAL.EVERY",
    # MindSpore
    "dataset": "DATA.NAME", "data_url": "DATA.PATH", "auto_augment": "AUG.AUTO_AUGMENT",
    "aa_interpolation": "AUG.INTERPOLATION", "re_mode": "AUG.ERASE_MODE", "re_prob": "AUG.ERASE_PROB",
    "re_count": "AUG.ERASE_COUNT", "mixup": "AUG.MIXUP", "cutmix": "AUG.CUTMIX", "mixup_prob": "AUG.MIX_PROB",
    "mixup_mode": "AUG.MIX_MODE", "mixup_off_epoch": "AUG.MIX_OFF_EPOCH", "switch_prob": "AUG.MIX_SWITCH_PROB",
    "label_smoothing": "TRAIN.LABEL_SMOOTHING", "crop_pct": "VAL.CROP_PCT", "optimizer": "TRAIN.OPTIMIZER",
    "beta": "TRAIN.BETAS", "eps": "TRAIN.EPSILON", "base_lr": "TRAIN.BASE_LR", "min_lr": "TRAIN.MIN_LR",
    "warmup_lr": "TRAIN.WARMUP_LR", "warmup_length": "TRAIN.WARMUP_EPOCHS", "momentum": "TRAIN.MOMENTUM",
    "weight_decay": "TRAIN.WEIGHT_DECAY", "epochs": _ALL_EPOCHS, "batch_size": "TRAIN.BATCH_SIZE",
    "num_parallel_workers": "DATA.NUM_WORKERS", "clip_grad_norm": "TRAIN.CLIP_NORM if use_clip_grad_norm is True",
    "amp_level": "TRAIN.AMP", "seed": "SEED", "ema_decay": "TRAIN.EMA_DECAY", "arch": "MODEL.NAME",
    "pretrained": "MODEL.PRETRAINED", "image_size": "DATA.IMAGE_SIZE", "num_classes": "MODEL.NUM_CLASSES",
    "drop": "MODEL.DROP_RATE", "drop_path": "MODEL.DROP_PATH_RATE", "logs_root_dir": "LOG",
    "ckpt_keep_num": "TRAIN.KEEP", "print_loss_every": "TRAIN.LOG_EVERY",
}  # fmt: skip


def translate(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Rewrite options of other programs in a command line, and show the result in one line on stderr.

    Exits with status 2 if an option has no single equivalent here.
    """
    rest, ours = list(words), []
    while rest:
        word = rest.pop(0)
        ours += _rewritten(word, rest, parser, words) if word.startswith("-") else [word]
    if ours != words:
        _note(f"{parser.prog} {shlex.join(ours)}")
    return ours


def _rewritten(word, rest, parser, words):
    """Return our spelling of one option. If the next word is its value, it is removed from `rest`."""
    option, equals, value = word.partition("=")
    name, known = option.lstrip("-").replace("_", "-"), parser._option_string_actions  # argparse has no public list
    if option in known:
        return [word]
    if f"--{name}" in known:
        return [f"--{name}{equals}{value}"]
    value = value if equals else rest[0] if rest else ""
    if name == "eval" and "--split" in known and not equals or name == "dataset" and value.startswith("imagenet"):
        template: str | None = "" if name == "eval" else "{:.0}"  # the value is dropped
    elif name == "arch" and any(word.lstrip("-").startswith(("config", "cfg")) for word in words):
        template = "MODEL.NAME {}"
    else:
        key = KEYS.get(name.replace("-", "_"), "")
        if name not in OPTIONS and " " in key:
            parser.error(f"{option} is an option of another program; here: {key}")
        template = OPTIONS.get(name, f"{key} {{}}" if key else None)
    takes_value = "{" in (template or "")
    if template is None or takes_value and not (equals or rest) or equals and not takes_value:
        return [word]  # argparse reports it
    if takes_value and not equals:
        rest.pop(0)
    return [part for part in (part.format(value) for part in template.split()) if part]


def take_data_folder(args: argparse.Namespace) -> None:
    """Accept a folder before the KEY VALUE words as --data-path, as in the official commands."""
    if len(args.opts) % 2 and not args.data_path and (os.sep in args.opts[0] or os.path.isdir(args.opts[0])):
        args.data_path, *args.opts = args.opts
        _note(f"--data-path {shlex.quote(args.data_path)}")


def _note(text):
    if ranks.is_main():
        print(f"note: read as {printable(text)}", file=sys.stderr)


def refusal(path: str | Path, unknown: list[str]) -> str:
    """Return an error text for a config file with these unknown keys; "" if none is a key of another program."""
    if not any(key in KEYS for key in unknown):
        return ""
    named = [f"{key} (here: {KEYS[key]})" if key in KEYS else key for key in unknown]
    return f"{path} has keys of another program, which must be renamed or removed: {', '.join(named)}"
