"""Options and config keys of other T2T-ViT and PiT repositories, and what they are called here.

An option that means the same is rewritten, which one line on stderr tells; for another one, and for every key of a
config file, the error says what takes its place. What nobody knows stays an error of argparse or of config.py.
"""

import fnmatch
import os
import shlex
import sys

from t2t_vit.common.errors import printable


class Advice(str):
    """What to do instead, where nothing here means the same."""


_CARDS = Advice("GPUS=0,1,2,3 before bash scripts/train.sh or scripts/val.sh names the cards")
_EPOCH = Advice("leave it out: a state, which --resume FILE names, knows its epoch")
_VALIDATE = Advice("bash scripts/val.sh --pretrained FILE evaluates")
_COSINE = Advice("leave it out: the schedule is always a warm-up and a cosine")
_OWN_FOLDER = Advice("OUTPUT, in which a run has one folder for all its files")
_ROOT = Advice("DATA.PATH, the folder above train/ and val/")
_NOTHING = Advice("leave it out: there is nothing like it")
_EPOCHS = Advice("TRAIN.EPOCHS, and TRAIN.COOLDOWN_EPOCHS 0 where the number is that of all epochs")
_WORKERS = "DATA.NUM_WORKERS"

# Option: ours, where {} is its value and "" nothing. "NAME=VALUE" is of that value alone, "COMMAND NAME" of a command,
# "--OTHER NAME" of a command line that has --OTHER too. VALUE may be a pattern, "*.json".
OPTIONS = {
    # PaddleViT and paddle_pit
    "cfg": "--config {}",
    "dataset=imagenet2012": "",
    "dataset=imagenet": "",
    "dataset": Advice("--data-path DIR and the config say what the data set is"),
    "image-size": "DATA.IMAGE_SIZE {}",
    "batch-size-eval": "VAL.BATCH_SIZE {}",
    "save-path": "--output {}",
    "img-path": "{}",
    "val eval": "",
    "train eval": _VALIDATE,
    "amp": "TRAIN.AMP O1",
    "accum-iter": "TRAIN.ACCUM_STEPS {}",
    "teacher-model": "DISTILL.WEIGHTS {}",
    "teacher-model-path": "DISTILL.WEIGHTS {}",
    "last-epoch": _EPOCH,
    "ngpus": _CARDS,
    # MindSpore
    "config-path": "--config {}",
    "data-url": "--data-path {}",
    "checkpoint": "--pretrained {}",
    "train checkpoint": Advice("--resume FILE goes on from a state, --pretrained FILE begins with weights"),
    "arch": "--config configs/{}.yaml",
    "--config arch": "MODEL.NAME {}",
    "--config-path arch": "MODEL.NAME {}",
    "epochs": "TRAIN.EPOCHS {} TRAIN.COOLDOWN_EPOCHS 0",
    "clip-grad-norm": Advice("TRAIN.CLIP_NORM where use_clip_grad_norm is True; leave it out otherwise"),
    "amp-level=O0": "",
    "start-epoch=0": "",
    "file-format=ONNX": "--format onnx",
    "file-format": Advice("--format is paddle, onnx or openvino"),
    "num-devices": _CARDS,
    "device-ids": _CARDS,
    "extra": "",
    "predict output=*.json": "--json-ids {}",
    # official T2T-ViT
    "model": "--config configs/{}.yaml",
    "--model epochs": "TRAIN.EPOCHS {}",  # to which it adds a cool-down, as here
    "--cooldown-epochs epochs": "TRAIN.EPOCHS {}",
    "cooldown-epochs": "TRAIN.COOLDOWN_EPOCHS {}",
    "b": "--batch-size {}",
    "lr": "TRAIN.BASE_LR {}",
    "warmup-epochs": "TRAIN.WARMUP_EPOCHS {}",
    "sched=cosine": "",
    "sched": _COSINE,
    "opt": "TRAIN.OPTIMIZER {}",
    "opt-eps": "TRAIN.EPSILON {}",
    "opt-betas": Advice('TRAIN.BETAS "[0.9, 0.999]"'),
    "clip-grad": "TRAIN.CLIP_NORM {}",
    "native-amp": "TRAIN.AMP O1",
    "apex-amp": "TRAIN.AMP O1",
    "model-ema": "",  # on by default there too
    "model-ema-decay": "TRAIN.EMA_DECAY {}",
    "model-ema-force-cpu": _NOTHING,
    "j": f"{_WORKERS} {{}}",
    "workers": f"{_WORKERS} {{}}",
    "validation-batch-size-multiplier": Advice("VAL.BATCH_SIZE, in images"),
    "vb": Advice("VAL.BATCH_SIZE, in images"),
    "aa": "AUG.AUTO_AUGMENT {}",
    "color-jitter": "AUG.COLOR_JITTER {}",
    "hflip": "AUG.HFLIP {}",
    "scale": Advice('AUG.SCALE "[0.08, 1.0]"'),
    "ratio": Advice('AUG.RATIO "[0.75, 1.33]"'),
    "reprob": "AUG.ERASE_PROB {}",
    "remode": "AUG.ERASE_MODE {}",
    "recount": "AUG.ERASE_COUNT {}",
    "mixup-switch-prob": "AUG.MIX_SWITCH_PROB {}",
    "cutmix-minmax": Advice('AUG.CUTMIX_MINMAX "[0.2, 0.8]"'),
    "smoothing": "TRAIN.LABEL_SMOOTHING {}",
    "train-interpolation": "AUG.INTERPOLATION {}",
    "interpolation": "VAL.INTERPOLATION {}",
    "mean": Advice('DATA.MEAN "[0.485, 0.456, 0.406]"'),
    "std": Advice('DATA.STD "[0.229, 0.224, 0.225]"'),
    "no-aug": Advice(
        'AUG.AUTO_AUGMENT "" AUG.COLOR_JITTER 0.0 AUG.ERASE_PROB 0.0 AUG.HFLIP 0.0 AUG.SCALE "[1.0, 1.0]"'
    ),
    "log-interval": "TRAIN.LOG_EVERY {}",
    "recovery-interval": Advice("TRAIN.SAVE_MINUTES, in minutes"),
    "initial-checkpoint": "--pretrained {}",
    "num-gpu": _CARDS,
    "local-rank": "",
    "pin-mem": "",
    "no-prefetcher": "",
    "use-multi-epochs-loader": "",
    "eval-metric=top1": "",
    "img-size": "DATA.IMAGE_SIZE {}",
    "eval-checkpoint": "--pretrained {}",
    "train eval-checkpoint": _VALIDATE,
    "transfer-model": "--pretrained {}",
    "transfer-learning=True": "",
    "no-resume-opt": Advice("--pretrained FILE begins with weights alone"),
}

# Key of a config file: ours. MindSpore's are options of its commands as well, and some of them official options.
KEYS = {
    # T2T_paddle
    "DATA_PATH.TRAIN_DATASET_PATH": _ROOT,
    "DATA_PATH.VAL_DATASET_PATH": _ROOT,
    "DATA_PATH.TRAIN_DATASET_LABEL_PATH": "DATA.TRAIN_LIST",
    "DATA_PATH.VAL_DATASET_LABEL_PATH": "DATA.VAL_LIST",
    "MODEL_PATH": "MODEL.PRETRAINED",
    "TRAIN.PRE_TRAIN": Advice("MODEL.PRETRAINED, empty for none"),
    "TRAIN.TRAIN_BATCH_SIZE": "TRAIN.BATCH_SIZE",
    "TRAIN.TRAIN_NUM_WORKS": _WORKERS,
    "TRAIN.VAL_BATCH_SIZE": "VAL.BATCH_SIZE",
    "TRAIN.VAL_NUM_WORKS": _WORKERS,
    "SCHEDULER.NUM_EPOCHS": _EPOCHS,
    "SCHEDULER.LAST_EPOCHS": _EPOCH,
    "SCHEDULER.WEIGHT_DECAY": "TRAIN.WEIGHT_DECAY",
    "SCHEDULER.BASE_LR": "TRAIN.BASE_LR",
    "SCHEDULER.USE_WARMUP": Advice("TRAIN.WARMUP_EPOCHS, 0 for none"),
    "SCHEDULER.WARMUP_EPOCHS": "TRAIN.WARMUP_EPOCHS",
    "SCHEDULER.WARMUP_START_LR": "TRAIN.WARMUP_LR",
    "SCHEDULER.END_LR": "TRAIN.MIN_LR",
    # PaddleViT and paddle_pit
    "DATA.BATCH_SIZE": "TRAIN.BATCH_SIZE",
    "DATA.BATCH_SIZE_EVAL": "VAL.BATCH_SIZE",
    "DATA.DATA_PATH": "DATA.PATH",
    "DATA.DATASET": "DATA.NAME",
    "DATA.CROP_PCT": "VAL.CROP_PCT",
    "MODEL.TYPE": Advice("MODEL.NAME, such as t2t_vit_7 or pit_ti"),
    "MODEL.DISTILL": Advice("MODEL.NAME, pit_ti_distilled for the distilled pit_ti"),
    "MODEL.RESUME": Advice("--resume FILE"),
    "MODEL.DROPOUT": "MODEL.DROP_RATE",
    "MODEL.ATTENTION_DROPOUT": "MODEL.ATTN_DROP_RATE",
    "MODEL.DROPPATH": "MODEL.DROP_PATH_RATE",
    "MODEL.DROP_PATH": "MODEL.DROP_PATH_RATE",
    "MODEL.EMBED_DIM": "MODEL.T2T.EMBED_DIM",
    "MODEL.DEPTH": Advice("MODEL.T2T.DEPTH, or MODEL.PIT.DEPTH of a PiT"),
    "MODEL.NUM_HEADS": Advice("MODEL.T2T.NUM_HEADS, or MODEL.PIT.HEADS of a PiT"),
    "MODEL.MLP_RATIO": Advice("MODEL.T2T.MLP_RATIO, or MODEL.PIT.MLP_RATIO of a PiT"),
    "MODEL.PATCH_SIZE": "MODEL.PIT.PATCH_SIZE",
    "MODEL.STRIDE": "MODEL.PIT.STRIDE",
    "MODEL.BASE_DIMS": "MODEL.PIT.BASE_DIMS",
    "MODEL.QKV_BIAS": Advice("MODEL.NAME, a T2T-ViT has none and a PiT has one"),
    "MODEL.TRANS.QKV_BIAS": Advice("MODEL.NAME, a T2T-ViT has none and a PiT has one"),
    "MODEL.TRANS.QK_SCALE": Advice("MODEL.QK_SCALE, 0.0 for None"),
    "MODEL.TRANS.PATCH_SIZE": "MODEL.PIT.PATCH_SIZE",
    "MODEL.TRANS.STRIDE": "MODEL.PIT.STRIDE",
    "MODEL.TRANS.BASE_DIMS": "MODEL.PIT.BASE_DIMS",
    "MODEL.TRANS.DEPTH": Advice("MODEL.PIT.DEPTH or MODEL.T2T.DEPTH"),
    "MODEL.TRANS.HEADS": "MODEL.PIT.HEADS",
    "MODEL.TRANS.TOKEN_TYPE": "MODEL.T2T.TOKENS_TYPE",
    "MODEL.TRANS.EMBED_DIM": "MODEL.T2T.EMBED_DIM",
    "MODEL.TRANS.NUM_HEADS": "MODEL.T2T.NUM_HEADS",
    "MODEL.TRANS.MLP_RATIO": "MODEL.T2T.MLP_RATIO",
    "TRAIN.LAST_EPOCH": _EPOCH,
    "TRAIN.NUM_EPOCHS": _EPOCHS,
    "TRAIN.WARMUP_START_LR": "TRAIN.WARMUP_LR",
    "TRAIN.END_LR": "TRAIN.MIN_LR",
    "TRAIN.ACCUM_ITER": "TRAIN.ACCUM_STEPS",
    "TRAIN.GRAD_CLIP": "TRAIN.CLIP_NORM",
    "TRAIN.SMOOTHING": "TRAIN.LABEL_SMOOTHING",
    "TRAIN.MODEL_EMA": Advice("TRAIN.EMA_DECAY, 0.0 for none"),
    "TRAIN.MODEL_EMA_DECAY": "TRAIN.EMA_DECAY",
    "TRAIN.LINEAR_SCALED_LR": Advice("TRAIN.BASE_LR, which is never scaled: times the global batch / 512"),
    **{f"TRAIN.LR_SCHEDULER.{key}": _COSINE for key in ("NAME", "MILESTONES", "DECAY_EPOCHS", "DECAY_RATE")},
    "TRAIN.OPTIMIZER.NAME": Advice("TRAIN.OPTIMIZER, adamw or sgd"),
    "TRAIN.OPTIMIZER.EPS": "TRAIN.EPSILON",
    "TRAIN.OPTIMIZER.BETAS": "TRAIN.BETAS",
    "TRAIN.OPTIMIZER.MOMENTUM": "TRAIN.MOMENTUM",
    "TRAIN.MIXUP_ALPHA": "AUG.MIXUP",
    "TRAIN.CUTMIX_ALPHA": "AUG.CUTMIX",
    "TRAIN.CUTMIX_MINMAX": "AUG.CUTMIX_MINMAX",
    **{f"{part}.MIXUP_{key}": f"AUG.MIX_{key}" for part in ("TRAIN", "AUG") for key in ("PROB", "SWITCH_PROB", "MODE")},
    "TRAIN.COLOR_JITTER": "AUG.COLOR_JITTER",
    "TRAIN.AUTO_AUGMENT": Advice("AUG.AUTO_AUGMENT original, or empty for none"),
    "TRAIN.RAND_AUGMENT": Advice("AUG.AUTO_AUGMENT rand-m9-mstd0.5-inc1, or empty for none"),
    **{f"TRAIN.RANDOM_ERASE_{key}": f"AUG.ERASE_{key}" for key in ("PROB", "MODE", "COUNT")},
    **{f"AUG.RE_{key}": f"AUG.ERASE_{key}" for key in ("PROB", "MODE", "COUNT")},
    "TRAIN.RANDOM_ERASE_SPLIT": _NOTHING,
    **{f"TRAIN.DISTILLATION_{key}": f"DISTILL.{key}" for key in ("TYPE", "ALPHA", "TAU")},
    "TRAIN.TEACHER_MODEL": Advice("DISTILL.TEACHER, the model, and DISTILL.WEIGHTS, its file"),
    "DATA.IMAGENET_MEAN": "DATA.MEAN",
    "DATA.IMAGENET_STD": "DATA.STD",
    "BASE": _NOTHING,
    "TAG": Advice("NAME, of the run and its folder"),
    "SAVE_FREQ": Advice("TRAIN.SAVE_MINUTES; a state is saved after every epoch"),
    "EVAL": _VALIDATE,
    "AMP": Advice("TRAIN.AMP O1"),
    "LOCAL_RANK": _NOTHING,
    "NGPUS": _CARDS,
    "SAVE": "OUTPUT",
    "REPORT_FREQ": "TRAIN.LOG_EVERY",
    "VALIDATE_FREQ": "VAL.EVERY",
    # MindSpore
    "dataset": "DATA.NAME",
    "data_url": "DATA.PATH",
    "train_dir": _ROOT,
    "val_dir": Advice("the validation folder is val/, validation/ or test/ in DATA.PATH, or DATA.VAL_LIST lists it"),
    "train_num_samples": Advice("DATA.TRAIN_LIST, a list of the images"),
    "val_num_samples": Advice("DATA.VAL_LIST, a list of the images"),
    "auto_augment": "AUG.AUTO_AUGMENT",
    "aa_interpolation": "AUG.INTERPOLATION",
    "re_mode": "AUG.ERASE_MODE",
    "re_prob": "AUG.ERASE_PROB",
    "re_count": "AUG.ERASE_COUNT",
    "mixup": "AUG.MIXUP",
    "cutmix": "AUG.CUTMIX",
    "mixup_prob": "AUG.MIX_PROB",
    "mixup_mode": "AUG.MIX_MODE",
    "mixup_off_epoch": "AUG.MIX_OFF_EPOCH",
    "switch_prob": "AUG.MIX_SWITCH_PROB",
    "label_smoothing": "TRAIN.LABEL_SMOOTHING",
    "min_crop": Advice("AUG.SCALE, [0.08, 1.0]"),
    "crop_pct": "VAL.CROP_PCT",
    "optimizer": "TRAIN.OPTIMIZER",
    "beta": "TRAIN.BETAS",
    "eps": "TRAIN.EPSILON",
    "base_lr": "TRAIN.BASE_LR",
    "min_lr": "TRAIN.MIN_LR",
    "warmup_lr": "TRAIN.WARMUP_LR",
    "warmup_length": "TRAIN.WARMUP_EPOCHS",
    "lr_scheduler": _COSINE,
    "lr_adjust": _COSINE,
    "lr_gamma": _COSINE,
    "momentum": "TRAIN.MOMENTUM",
    "weight_decay": "TRAIN.WEIGHT_DECAY",
    "epochs": _EPOCHS,
    "start_epoch": _EPOCH,
    "batch_size": "TRAIN.BATCH_SIZE",
    "num_parallel_workers": _WORKERS,
    "use_clip_grad_norm": Advice("TRAIN.CLIP_NORM, 0.0 for none"),
    "clip_grad_norm": Advice("TRAIN.CLIP_NORM where use_clip_grad_norm is True"),
    "is_dynamic_loss_scale": Advice("TRAIN.AMP O1, whose loss scale always is dynamic"),
    "loss_scale": Advice("TRAIN.AMP O1, which finds its loss scale"),
    "amp_level": "TRAIN.AMP",
    "seed": "SEED",
    "with_ema": Advice("TRAIN.EMA_DECAY, 0.0 for none"),
    "ema_decay": "TRAIN.EMA_DECAY",
    "arch": "MODEL.NAME",
    "pretrained": "MODEL.PRETRAINED",
    "image_size": "DATA.IMAGE_SIZE",
    "num_classes": "MODEL.NUM_CLASSES",
    "drop": "MODEL.DROP_RATE",
    "drop_path": "MODEL.DROP_PATH_RATE",
    "device_id": Advice("DEVICE, such as gpu:0"),
    "device_num": _CARDS,
    "device_target": Advice("DEVICE, cpu or gpu"),
    "file_format": Advice("--format of tools/export.py"),
    "summary_root_dir": _OWN_FOLDER,
    "ckpt_root_dir": _OWN_FOLDER,
    "best_ckpt_root_dir": _OWN_FOLDER,
    "logs_root_dir": "LOG",
    "ckpt_keep_num": "TRAIN.KEEP",
    "best_ckpt_num": Advice("leave it out: the best weights are one file, best.pdparams"),
    "ckpt_save_every_seconds": Advice("TRAIN.SAVE_MINUTES, in minutes"),
    "ckpt_save_every_step": Advice("TRAIN.SAVE_MINUTES, in minutes"),
    "print_loss_every": "TRAIN.LOG_EVERY",
    "model_postfix": Advice("NAME, of the run and its folder"),
    "disable_approximate_gelu": _NOTHING,
    "drop_block": _NOTHING,
    "pynative_mode": _NOTHING,
    "dataset_sink_mode": _NOTHING,
    "exclude_epoch_state": _NOTHING,
    "summary_loss_collect_freq": _NOTHING,
    "collect_input_data": _NOTHING,
    "dump_graph": _NOTHING,
}


def translate(words, parser, command=None):
    """The words of a command line in the spelling of `parser`; one line on stderr if it is another than theirs.

    `command` is the one of `OPTIONS`, by default that of the parser's name.

    Exits with status 2, as argparse does, at an option of another repository that cannot be rewritten.
    """
    command = command or parser.prog.partition(".")[0]
    contexts = [f"--{_name(word)}" for word in words if word.startswith("-")] + [command]
    rest, ours = list(words), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            ours += [word, *rest]
            break
        ours += _rewritten(word, rest, parser, contexts) if word.startswith("-") else [word]
    if ours != list(words):
        _note(f"{parser.prog} {shlex.join(ours)}")
    return ours


def _note(text):
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":  # once, not in each process of a launch
        print(f"note: read as {printable(text)}", file=sys.stderr)


def _name(word):
    """Name of the option in a word such as --batch_size=8: batch-size."""
    return word.partition("=")[0].lstrip("-").replace("_", "-")


def _rewritten(word, rest, parser, contexts):
    """Our words for one that starts with a dash; takes its value from `rest` if it stands there.

    `contexts` are the first words that a name of `OPTIONS` may have: the options of the command line, the command.
    """
    option, equals, value = word.partition("=")
    name, known = _name(word), parser._option_string_actions  # argparse has no public name for them
    if not equals and rest:
        value = rest[0]
    match = _match([*(f"{context} {name}" for context in contexts), name], value)
    if "=" not in (match or "") and (option in known or f"--{name}" in known):
        return [word if option in known else f"--{name}{word[len(option) :]}"]
    key = KEYS.get(name.replace("-", "_"))
    if not match and not key:
        return [word]
    new = OPTIONS[match] if match else key if isinstance(key, Advice) else f"{key} {{}}"
    if isinstance(new, Advice):
        parser.error(f"{option} is an option of another repository: {new}")
    takes_value = "{}" in new or "=" in (match or "")
    if equals and not takes_value or takes_value and not equals and not rest:
        return [word]
    if takes_value and not equals:
        rest.pop(0)
    return [part.format(value) for part in new.split()]


def _match(names, value):
    """The first of `OPTIONS` that has one of `names`, and fits `value` where it says of which it is; else None."""
    for name in names:
        for spelling in OPTIONS:
            option, _, pattern = spelling.partition("=")
            if option == name and fnmatch.fnmatch(value, pattern or "*"):
                return spelling
    return None


def take_data_folder(args):
    """Read the folder that stands first among KEY VALUE words, where the official commands have it, as --data-path."""
    if len(args.opts) % 2 and not args.data_path and (os.sep in args.opts[0] or os.path.isdir(args.opts[0])):
        args.data_path, *args.opts = args.opts
        _note(f"--data-path {shlex.quote(args.data_path)}")


def refusal(path, keys):
    """The error for a config file with `keys` of another repository, or "" if there are none."""
    names = [f"{key} (here: {KEYS[key]})" for key in keys if key in KEYS]
    return f"{path} has keys of another repository, which must be renamed: {', '.join(names)}" if names else ""
