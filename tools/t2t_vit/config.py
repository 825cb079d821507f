"""Settings: defaults, the YAML file over them, command-line pairs over both.

The defaults are the official recipe of the lite T2T-ViTs (main.py of yitu-opensource/T2T-ViT), so that a file in
configs/ says only what differs. A relative path in a YAML file counts from the repository root, one on the command
line from the current folder. Imports no paddle.
"""

import difflib
import math
import os
import re
from pathlib import Path

from yacs.config import CfgNode as CN

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import read_text
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.spellings import refusal

ROOT = Path(__file__).resolve().parents[2]

_C = CN()
_C.NAME = ""  # of the run, its folder and its log; "" = name of the config file
_C.SEED = 42  # of the initial weights, order of the images, augmentation and dropout
_C.DEVICE = ""  # cpu, gpu or gpu:N; "" = a GPU if there is one
_C.OUTPUT = "output"  # folder of the run folders
_C.LOG = "log"  # folder of the text logs

_C.CPU = CN()  # for training and eager inference without a GPU
_C.CPU.MICRO_BATCH = (
    4  # images (of 224 pixels; more of smaller ones) that a thread takes at a time; 0 = the whole batch
)
_C.CPU.FAST_OPS = True  # linear layers and LayerNorm in a form that spares a CPU Paddle's slow gradients

_C.MODEL = CN()
_C.MODEL.NAME = "t2t_vit_7"  # any of models.list_models()
_C.MODEL.PRETRAINED = ""  # weights, a file or URL: start of a training; for val, predict "" = best.pdparams of the run
_C.MODEL.POS_RESIZE = "bicubic"  # PRETRAINED of another image size: bicubic, or sinusoid (anew where it still is one)
_C.MODEL.NUM_CLASSES = 1000  # 0 = as many as the data set has, or the weights where no data is read
_C.MODEL.DROP_RATE = 0.0  # dropout in the backbone
_C.MODEL.ATTN_DROP_RATE = 0.0  # dropout on the backbone's attention
_C.MODEL.DROP_PATH_RATE = 0.1  # stochastic depth of the last block, rising linearly from 0 in the first
_C.MODEL.FUSED_ATTENTION = False  # FlashAttention by paddle, with AMP on GPUs from Ampere on; elsewhere nothing changes
_C.MODEL.QK_SCALE = 0.0  # scale of q.k in the backbone; 0.0 or None = head_dim ** -0.5
_C.MODEL.T2T = CN()  # 0, 0.0, "" or [] = as in the named variant
_C.MODEL.T2T.EMBED_DIM = 0  # width of the backbone
_C.MODEL.T2T.DEPTH = 0  # blocks
_C.MODEL.T2T.NUM_HEADS = 0
_C.MODEL.T2T.MLP_RATIO = 0.0  # hidden width of the blocks' MLP / EMBED_DIM
_C.MODEL.T2T.TOKENS_TYPE = ""  # performer, transformer or convolution
_C.MODEL.T2T.TOKEN_DIM = 0  # width inside the T2T module
_C.MODEL.T2T.SPLITS = []  # [[kernel, stride, padding], ...] of the soft splits, in pixels or tokens
_C.MODEL.PIT = CN()  # likewise for a PiT
_C.MODEL.PIT.PATCH_SIZE = 0  # pixels
_C.MODEL.PIT.STRIDE = 0  # pixels between two patches
_C.MODEL.PIT.BASE_DIMS = []  # width per head, one of each stage
_C.MODEL.PIT.DEPTH = []  # blocks of each stage
_C.MODEL.PIT.HEADS = []  # of each stage
_C.MODEL.PIT.MLP_RATIO = 0.0  # hidden width of the blocks' MLP / width

_C.DISTILL = CN()
_C.DISTILL.TYPE = (
    ""  # learn from a teacher too: hard (from its likeliest class), soft (from its probabilities); "" = no
)
_C.DISTILL.TEACHER = ""  # any of models.list_models() or paddle.vision.models (resnet50), or a config file
_C.DISTILL.WEIGHTS = ""  # the teacher's weights file; "" = best.pdparams beside the config file
_C.DISTILL.ALPHA = 0.5  # the teacher's share of the loss
_C.DISTILL.TAU = 1.0  # temperature of soft

_C.DATA = CN()
_C.DATA.NAME = "ImageNet"  # as printed with the accuracies
_C.DATA.PATH = "datasets/imagenet"  # folder with train/ and val/
_C.DATA.VAL_FRACTION = 0.0  # share of each class that validates where PATH has no val/ (nor, maybe, train/); 0.0 = none
_C.DATA.TRAIN_LIST = ""  # file of "relative/path label" lines, itself relative to PATH; "" = the class folders
_C.DATA.VAL_LIST = ""
_C.DATA.CLASSES = "configs/imagenet1k_classes.tsv"  # class list; "" = classes.txt in PATH or the names of the folders
_C.DATA.CHANNELS = 3  # 3 RGB or 1 grey
_C.DATA.IMAGE_SIZE = 224  # pixels, height and width of the model's input
_C.DATA.MEAN = [0.485, 0.456, 0.406]  # per channel, of values in 0..1
_C.DATA.STD = [0.229, 0.224, 0.225]
_C.DATA.EXIF = "auto"  # camera rotation: upright, ignore, or auto (ignored in ImageNet's own data, as officially)
_C.DATA.GREY_BITS = 16  # bits of a 16-bit grey image that hold values; 12 for many cameras and scanners
_C.DATA.NUM_WORKERS = 8  # loader processes of each training process; 0 = read in the training process
_C.DATA.READER = "turbo"  # of training images: turbo (libjpeg-turbo, SIMD resizing; where installed) or pillow
_C.DATA.ON_ERROR = "raise"  # at an unreadable training image: raise, or skip (up to 3, or 1 % of an epoch)

_C.AUG = CN()
_C.AUG.SCALE = [0.08, 1.0]  # random-resized crop: share of the image's area
_C.AUG.RATIO = [3 / 4, 4 / 3]  # width / height of the crop
_C.AUG.PADDED_CROP = 0.0  # padding / side of a padded random crop instead (0.125 for CIFAR); 0.0 = off
_C.AUG.INTERPOLATION = "random"  # bilinear, bicubic, or random: either, drawn for each image
_C.AUG.HFLIP = 0.5  # probability of a horizontal flip
_C.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # RandAugment by this string, AutoAugment original or v0, 3a, or ""
_C.AUG.COLOR_JITTER = 0.4  # brightness, contrast, saturation times 1 +- this; only where AUTO_AUGMENT is "" or 3a
_C.AUG.ERASE_PROB = 0.25  # probability of random erasing
_C.AUG.ERASE_MODE = "pixel"  # fill of the erased boxes: pixel (noise), rand (one colour each) or const (the mean)
_C.AUG.ERASE_COUNT = 1  # largest number of boxes in an image
_C.AUG.ERASE_MIXED = True  # erase in the mixed images, as T2T-ViT does; False: in each before mixing, as DeiT does
_C.AUG.MIXUP = 0.8  # alpha of mixup's Beta law; 0.0 = no mixup
_C.AUG.CUTMIX = 1.0  # alpha of cutmix's Beta law; 0.0 = no cutmix
_C.AUG.CUTMIX_MINMAX = []  # [smallest, largest] side of the cut box / side of the image, instead of the Beta law
_C.AUG.MIX_PROB = 1.0  # probability of mixing
_C.AUG.MIX_SWITCH_PROB = 0.5  # share of cutmix where both are on
_C.AUG.MIX_MODE = "batch"  # one draw for the batch, each pair (pair) or each image (elem)
_C.AUG.MIX_OFF_EPOCH = 0  # epoch (from 0) from which nothing is mixed any more; 0 = never
_C.AUG.REPEATS = 1  # repeated augmentation: copies of an image in an epoch, which then sees 1/REPEATS of the images

_C.TRAIN = CN()
_C.TRAIN.BATCH_SIZE = 64  # images per process and pass through the model
_C.TRAIN.ACCUM_STEPS = 1  # passes whose gradients are averaged into one step, for a batch larger than the memory
_C.TRAIN.GLOBAL_BATCH = 0  # images of one step over all processes, which sets ACCUM_STEPS; 0 = ACCUM_STEPS decides
_C.TRAIN.EPOCHS = 300  # of warm-up and cosine
_C.TRAIN.COOLDOWN_EPOCHS = 10  # at MIN_LR, after EPOCHS
_C.TRAIN.WARMUP_EPOCHS = 10
_C.TRAIN.OPTIMIZER = "adamw"  # adamw, or sgd (with momentum, as the official fine-tuning)
_C.TRAIN.BASE_LR = 1e-3  # for a global batch of 512; never scaled by the batch
_C.TRAIN.WARMUP_LR = 1e-6  # of the whole epoch 0
_C.TRAIN.MIN_LR = 1e-5
_C.TRAIN.BACKBONE_LR = 0.0  # in BASE_LR's place for all but the head, with a cosine of its own; 0.0 = BASE_LR
_C.TRAIN.LAYER_DECAY = 1.0  # learning rate of a layer / that of the one above it; to fine-tune, 0.65 to 0.9
_C.TRAIN.FREEZE = []  # patterns of parameters not to train: "blocks.0.*"; after a !, to train: ["*", "!head*"]
_C.TRAIN.WEIGHT_DECAY = 0.03
_C.TRAIN.BETAS = [0.9, 0.999]  # of adamw
_C.TRAIN.EPSILON = 1e-8  # of adamw
_C.TRAIN.MOMENTUM = 0.9  # of sgd
_C.TRAIN.LABEL_SMOOTHING = 0.1  # also inside the mixed targets
_C.TRAIN.CLIP_NORM = 0.0  # largest norm of all gradients together; 0.0 = not clipped
_C.TRAIN.EMA_DECAY = 0.99996  # per step, of the moving average of the weights; 0.0 = no average
_C.TRAIN.AMP = ""  # mixed precision on a GPU: O1 (per operation), O2 (weights too, with a float32 copy); "" = float32
_C.TRAIN.AMP_DTYPE = "float16"  # float16 (with dynamic loss scaling) or bfloat16
_C.TRAIN.TF32 = False  # float32 products of training with 10-bit factors, on GPUs from Ampere on; never in validation
_C.TRAIN.RECOMPUTE = False  # keep fewer activations and compute them again for the gradient
_C.TRAIN.TO_STATIC = False  # train the model as one compiled graph, paddle.jit.to_static
_C.TRAIN.MAX_BAD_STEPS = 10  # steps in a row that are not finite after which the run stops, at its next log line
_C.TRAIN.LOG_EVERY = 50  # steps between two log lines
_C.TRAIN.SAVE_MINUTES = 10.0  # between two saves within an epoch; 0.0 = only after each epoch
_C.TRAIN.KEEP = 2  # states kept: latest.pdparams and KEEP - 1 before it
_C.TRAIN.TIME_LIMIT = ""  # 71h30m, 90m, 30s: save and stop before a job limit ends the process; "" = none

_C.VAL = CN()
_C.VAL.BATCH_SIZE = 128  # images per process and step
_C.VAL.CROP_PCT = 0.9  # the shorter side is resized to floor(IMAGE_SIZE / CROP_PCT), then the centre is cropped
_C.VAL.INTERPOLATION = "bicubic"
_C.VAL.CROP_MODE = "center"  # center, or squash: resized to IMAGE_SIZE x IMAGE_SIZE, CROP_PCT unused
_C.VAL.BEST = "ema"  # weights whose top-1 decides on best.pdparams: ema (raw where EMA_DECAY is 0.0) or raw
_C.VAL.EVERY = 1  # epochs between two validations; the last epoch is always validated
_C.VAL.LOG_EVERY = 10  # steps between two lines of val.py

INTERPOLATIONS = ("bilinear", "bicubic")
EXIF = ("auto", "upright", "ignore")
CROP_MODES = ("center", "squash")


def load_config(path, overrides=()):
    """Merge defaults, a YAML file and (key, value) pairs into a frozen CfgNode.

    Raises UserError naming the file and key: missing or broken file, unknown key, wrong type, impossible value.
    """
    path = find_config(path)
    cfg = _C.clone()
    leaves = list(_leaves(_read_yaml(path)))
    known = all_keys()
    if text := refusal(path, [key for key, _ in leaves if key not in known]):
        raise UserError(text)
    for key, value in leaves:
        _set(cfg, key, value, path)
    for key, value in overrides:
        _set(cfg, key, value, "command line")
    given = [key for key, _ in overrides]
    if "TRAIN.ACCUM_STEPS" in given and "TRAIN.GLOBAL_BATCH" not in given:
        cfg.TRAIN.GLOBAL_BATCH = 0  # the command line wins over the file
    cfg.NAME = cfg.NAME or path.stem
    _check(cfg)
    cfg.freeze()
    return cfg


def with_classes(cfg, number):
    """The config with MODEL.NUM_CLASSES 0, "as many as there are", settled to `number`; any other is left as it is."""
    return cfg if cfg.MODEL.NUM_CLASSES else with_keys(cfg, {"MODEL.NUM_CLASSES": number})


def accumulation(cfg, processes):
    """Passes through the model in one training step: ACCUM_STEPS, or as many as make GLOBAL_BATCH images.

    Raises UserError, naming values that work, if GLOBAL_BATCH is not a multiple of BATCH_SIZE times `processes`.
    """
    batch, total = cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.GLOBAL_BATCH
    if not total:
        return cfg.TRAIN.ACCUM_STEPS
    images = batch * processes
    if total % images:
        fitting = [size for size in range(1, batch + 1) if total % (size * processes) == 0]
        hint = f"set TRAIN.BATCH_SIZE {fitting[-1]}" if fitting else "set another number of processes"
        raise UserError(
            f"TRAIN.GLOBAL_BATCH {total} is not a multiple of TRAIN.BATCH_SIZE {batch} x {processes} process(es); "
            f"{hint}, or TRAIN.GLOBAL_BATCH {-(-total // images) * images}"
        )
    return total // images


def with_keys(cfg, values):
    """The config with the {key: value} of `values`, frozen. Raises ValueError for a wrong type, else UserError."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in dict(values).items():
        _put(cfg, key, value)
    _check(cfg)
    cfg.freeze()
    return cfg


def resolve(path):
    """Absolute form of a path from a config: relative ones count from the repository root."""
    return ROOT / os.path.expanduser(path)  # which leaves ~ as it is where there is no home folder


def best_weights(cfg):
    """best.pdparams of the config's run: the user's own in OUTPUT, or where there is none the shipped one."""
    own, shipped = (resolve(cfg.OUTPUT) / place / cfg.NAME / "best.pdparams" for place in ("", "pretrained"))
    return shipped if shipped.is_file() and not own.is_file() else own


def to_seconds(text):
    """Seconds of a time such as 71h30m, 90m or 30s; 0 if it is none."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1))) if match else 0


def default_config():
    """A frozen copy of the defaults."""
    cfg = _C.clone()
    cfg.freeze()
    return cfg


def find_config(path):
    """The config file that a path means: in the current folder, or else in the repository. UserError if none is."""
    candidates = [Path(path), ROOT / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if Path(path).is_dir():
        raise UserError(f"config {path} is a folder")
    available = ", ".join(sorted(p.name for p in (ROOT / "configs").glob("*.yaml")))
    raise UserError(f"config {path} not found; configs/ holds {available}")


def _read_yaml(path):
    # yacs would execute a .py config.
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"config {path} is not YAML: its name must end in .yaml or .yml")
    try:
        tree = load_yaml(read_text(path, 2**16))
    except ValueError as error:
        raise UserError(f"config {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config {path} must hold KEY: value pairs")
    return tree


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def all_keys():
    """Every key, with its sections: "TRAIN.EPOCHS"."""
    return [key for key, _ in _leaves(_C)]


def starts_like_a_key(word):
    """True for a word like TRAIN.EPOCH, whose first part is a section or key, whether or not the rest is known."""
    return word.split(".")[0] in _C


def _set(cfg, key, value, source):
    known = all_keys()
    if key not in known:
        near = difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.5)
        near += [k for k in known if k.split(".")[-1] == key.split(".")[-1].upper() and k not in near]
        hint = f"; did you mean {', '.join(near)}?" if near else "; tools/t2t_vit/config.py lists the keys"
        raise UserError(f"{source}: unknown key {key}{hint}")
    node, leaf = _place(cfg, key)
    default = node[leaf]
    if key == "MODEL.QK_SCALE" and value in (None, "None"):
        value = 0.0  # what PaddleViT's configs call None
    try:
        if value is None or isinstance(value, dict):
            raise ValueError
        _put(cfg, key, value)
        if node[leaf] is None:  # which yacs makes of the word None, for any type but text
            raise ValueError
    except (ValueError, RecursionError, MemoryError):  # of a text that Python's parser finds too deep
        kind = type(default).__name__
        hint = f" (write {value}.0)" if kind == "float" and str(value).lstrip("-").isdigit() else ""
        hint = f' (write "{value}")' if kind == "str" and isinstance(value, (int, float)) else hint
        raise UserError(f"{source}: {key} must be of type {kind}{hint}, not {_brief(value)}") from None


def _brief(value):
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _place(cfg, key):
    """(section, name in it) of a key."""
    *sections, leaf = key.split(".")
    for section in sections:
        cfg = cfg[section]
    return cfg, leaf


def _put(cfg, key, value):
    """Set a key. Raises ValueError for a value of another type."""
    node, leaf = _place(cfg, key)
    if isinstance(node[leaf], str) and isinstance(value, str):
        node[leaf] = value  # as it is: yacs would turn a folder named 2012 into a number
    else:
        cfg.merge_from_list([key, value])


def _numbers(values, length, low=-math.inf, high=math.inf):
    return len(values) == length and all(
        type(value) in (int, float) and math.isfinite(value) and low <= value <= high for value in values
    )


def _is_split(split):
    return (
        isinstance(split, (list, tuple))
        and len(split) == 3
        and all(type(n) is int for n in split)
        and split[0] >= 1
        and split[1] >= 1
        and 0 <= split[2] < split[0]
    )


def _check(cfg):
    model, distill, data, aug, train, val = cfg.MODEL, cfg.DISTILL, cfg.DATA, cfg.AUG, cfg.TRAIN, cfg.VAL
    t2t, pit = model.T2T, model.PIT
    rules = [
        ("NAME", cfg.NAME not in (".", "..") and not re.search(r"[/\0]", cfg.NAME), "a plain name, no path"),
        ("NAME", cfg.NAME != "pretrained", "another name: this is the folder of the shipped runs"),
        *((key, value, "a folder") for key, value in
          (("OUTPUT", cfg.OUTPUT), ("LOG", cfg.LOG), ("DATA.PATH", data.PATH))),
        ("SEED", 0 <= cfg.SEED < 2**31, "0 to 2147483647"),
        ("DEVICE", re.fullmatch(r"(cpu|gpu(:[0-9]+)?)?", cfg.DEVICE), "cpu, gpu or gpu:N"),
        ("CPU.MICRO_BATCH", 0 <= cfg.CPU.MICRO_BATCH <= 1024, "0 to 1024"),
        ("MODEL.NUM_CLASSES", model.NUM_CLASSES == 0 or model.NUM_CLASSES >= 2, "2 or more, or 0"),
        ("MODEL.DROP_RATE", 0 <= model.DROP_RATE < 1, "0.0 to below 1.0"),
        ("MODEL.ATTN_DROP_RATE", 0 <= model.ATTN_DROP_RATE < 1, "0.0 to below 1.0"),
        ("MODEL.DROP_PATH_RATE", 0 <= model.DROP_PATH_RATE < 1, "0.0 to below 1.0"),
        ("MODEL.QK_SCALE", model.QK_SCALE >= 0, "0.0 or more"),
        ("MODEL.FUSED_ATTENTION", not (model.FUSED_ATTENTION and model.ATTN_DROP_RATE),
         "False with a MODEL.ATTN_DROP_RATE, which it does not have"),
        ("MODEL.POS_RESIZE", model.POS_RESIZE in ("bicubic", "sinusoid"), "bicubic or sinusoid"),
        *((f"MODEL.T2T.{key}", 0 <= t2t[key] <= 65536, "0 to 65536")
          for key in ("EMBED_DIM", "DEPTH", "NUM_HEADS", "MLP_RATIO", "TOKEN_DIM")),
        ("MODEL.T2T.SPLITS", len(t2t.SPLITS) != 1 and all(map(_is_split, t2t.SPLITS)),
         "[] or two or more [kernel, stride, padding] with padding below kernel"),
        *((f"MODEL.PIT.{key}", 0 <= pit[key] <= 65536, "0 to 65536") for key in ("PATCH_SIZE", "STRIDE", "MLP_RATIO")),
        *((f"MODEL.PIT.{key}", all(type(n) is int and 1 <= n <= 65536 for n in pit[key]), "[] or a list of 1 to 65536")
          for key in ("BASE_DIMS", "DEPTH", "HEADS")),
        ("DISTILL.TYPE", distill.TYPE in ("", "hard", "soft"), "hard, soft or empty"),
        ("DISTILL.TEACHER", distill.TEACHER or not distill.TYPE, f"a model or config with DISTILL.TYPE {distill.TYPE}"),
        ("DISTILL.ALPHA", 0 <= distill.ALPHA <= 1, "0.0 to 1.0"),
        ("DISTILL.TAU", distill.TAU > 0, "above 0.0"),
        ("DATA.VAL_FRACTION", 0 <= data.VAL_FRACTION < 1, "0.0 to below 1.0"),
        ("DATA.VAL_FRACTION", not data.VAL_FRACTION or not (data.TRAIN_LIST or data.VAL_LIST),
         "0.0 with DATA.TRAIN_LIST or DATA.VAL_LIST: it divides folders, lists are taken as they are"),
        ("DATA.CHANNELS", data.CHANNELS in (1, 3), "1 or 3"),
        ("DATA.IMAGE_SIZE", 1 <= data.IMAGE_SIZE <= 4096, "1 to 4096 pixels"),
        ("DATA.MEAN", _numbers(data.MEAN, data.CHANNELS), f"a list of {data.CHANNELS} number(s), one per channel"),
        ("DATA.STD", _numbers(data.STD, data.CHANNELS, low=1e-6),
         f"a list of {data.CHANNELS} positive number(s), one per channel"),
        ("DATA.EXIF", data.EXIF in EXIF, ", ".join(EXIF)),
        ("DATA.GREY_BITS", 8 <= data.GREY_BITS <= 16, "8 to 16"),
        ("DATA.NUM_WORKERS", 0 <= data.NUM_WORKERS <= 256, "0 to 256"),
        ("DATA.READER", data.READER in ("turbo", "pillow"), "turbo or pillow"),
        ("DATA.ON_ERROR", data.ON_ERROR in ("raise", "skip"), "raise or skip"),
        ("AUG.SCALE", _numbers(aug.SCALE, 2, 1e-6, 1.0) and aug.SCALE[0] <= aug.SCALE[1],
         "[smallest, largest] within 0 to 1"),
        ("AUG.RATIO", _numbers(aug.RATIO, 2, 0.01, 100.0) and aug.RATIO[0] <= aug.RATIO[1],
         "[smallest, largest] within 0.01 to 100"),
        ("AUG.PADDED_CROP", 0 <= aug.PADDED_CROP <= 1, "0.0 to 1.0"),
        ("AUG.INTERPOLATION", aug.INTERPOLATION in (*INTERPOLATIONS, "random"), "bilinear, bicubic or random"),
        *((f"AUG.{key}", 0 <= aug[key] <= 1, "0.0 to 1.0")
          for key in ("HFLIP", "COLOR_JITTER", "ERASE_PROB", "MIX_PROB", "MIX_SWITCH_PROB")),
        ("AUG.ERASE_MODE", aug.ERASE_MODE in ("pixel", "rand", "const"), "pixel, rand or const"),
        ("AUG.ERASE_COUNT", 1 <= aug.ERASE_COUNT <= 100, "1 to 100"),
        *((f"AUG.{key}", aug[key] >= 0, "0.0 or more") for key in ("MIXUP", "CUTMIX")),
        ("AUG.CUTMIX_MINMAX", not aug.CUTMIX_MINMAX
         or _numbers(aug.CUTMIX_MINMAX, 2, 0.0, 1.0) and aug.CUTMIX_MINMAX[0] <= aug.CUTMIX_MINMAX[1],
         "[] or [smallest, largest] within 0 to 1"),
        ("AUG.CUTMIX", aug.CUTMIX > 0 or not aug.CUTMIX_MINMAX, "above 0.0 with AUG.CUTMIX_MINMAX"),
        ("AUG.MIX_MODE", aug.MIX_MODE in ("batch", "pair", "elem"), "batch, pair or elem"),
        ("AUG.MIX_OFF_EPOCH", aug.MIX_OFF_EPOCH >= 0, "0 or more"),
        ("AUG.REPEATS", 1 <= aug.REPEATS <= 100, "1 to 100"),
        ("TRAIN.BATCH_SIZE", train.BATCH_SIZE >= 1, "1 or more"),
        ("TRAIN.ACCUM_STEPS", train.ACCUM_STEPS >= 1, "1 or more"),
        ("TRAIN.GLOBAL_BATCH", train.GLOBAL_BATCH >= 0, "0 or more"),
        ("TRAIN.EPOCHS", train.EPOCHS >= 1, "1 or more"),
        ("TRAIN.COOLDOWN_EPOCHS", train.COOLDOWN_EPOCHS >= 0, "0 or more"),
        ("TRAIN.WARMUP_EPOCHS", 0 <= train.WARMUP_EPOCHS < train.EPOCHS, f"0 to below TRAIN.EPOCHS {train.EPOCHS}"),
        ("TRAIN.BASE_LR", 0 < train.BASE_LR < float("inf"), "positive"),
        ("TRAIN.WARMUP_LR", 0 <= train.WARMUP_LR <= train.BASE_LR, f"0.0 to TRAIN.BASE_LR {train.BASE_LR}"),
        ("TRAIN.MIN_LR", 0 <= train.MIN_LR <= train.BASE_LR, f"0.0 to TRAIN.BASE_LR {train.BASE_LR}"),
        ("TRAIN.OPTIMIZER", train.OPTIMIZER in ("adamw", "sgd"), "adamw or sgd"),
        ("TRAIN.BACKBONE_LR", train.BACKBONE_LR == 0 or train.MIN_LR <= train.BACKBONE_LR < float("inf"),
         f"0.0 (as TRAIN.BASE_LR), or TRAIN.MIN_LR {train.MIN_LR} or more"),
        ("TRAIN.BACKBONE_LR", train.BACKBONE_LR == 0 or not train.WARMUP_EPOCHS or train.WARMUP_LR <= train.BACKBONE_LR,
         f"0.0 (as TRAIN.BASE_LR), or TRAIN.WARMUP_LR {train.WARMUP_LR} or more"),
        ("TRAIN.LAYER_DECAY", 0 < train.LAYER_DECAY <= 1, "above 0.0, up to 1.0"),
        ("TRAIN.FREEZE", all(isinstance(pattern, str) and pattern.lstrip("!") for pattern in train.FREEZE),
         'a list of patterns such as ["blocks.0.*", "!head*"]'),
        ("TRAIN.MOMENTUM", 0 <= train.MOMENTUM < 1, "0.0 to below 1.0"),
        ("TRAIN.WEIGHT_DECAY", 0 <= train.WEIGHT_DECAY < float("inf"), "0.0 or more"),
        ("TRAIN.BETAS", _numbers(train.BETAS, 2, 0.0, 1.0) and max(train.BETAS) < 1, "two numbers in 0.0 to below 1.0"),
        ("TRAIN.EPSILON", 0 < train.EPSILON < 1, "above 0.0 and below 1.0"),
        ("TRAIN.LABEL_SMOOTHING", 0 <= train.LABEL_SMOOTHING < 1, "0.0 to below 1.0"),
        ("TRAIN.CLIP_NORM", train.CLIP_NORM >= 0, "0.0 or more"),
        ("TRAIN.EMA_DECAY", 0 <= train.EMA_DECAY < 1, "0.0 to below 1.0"),
        ("TRAIN.TF32", not (train.TF32 and train.TO_STATIC),
         "False with TRAIN.TO_STATIC, which would round the performer's exponents too"),
        ("TRAIN.AMP", train.AMP in ("", "O1", "O2"), "O1, O2 or empty"),
        ("TRAIN.AMP_DTYPE", train.AMP_DTYPE in ("float16", "bfloat16"), "float16 or bfloat16"),
        ("TRAIN.MAX_BAD_STEPS", train.MAX_BAD_STEPS >= 1, "1 or more"),
        ("TRAIN.LOG_EVERY", train.LOG_EVERY >= 1, "1 or more"),
        ("TRAIN.SAVE_MINUTES", train.SAVE_MINUTES >= 0, "0.0 or more"),
        ("TRAIN.KEEP", train.KEEP >= 1, "1 or more"),
        ("TRAIN.TIME_LIMIT", not train.TIME_LIMIT or to_seconds(train.TIME_LIMIT), "a time such as 71h30m, 90m or 30s"),
        ("VAL.BATCH_SIZE", val.BATCH_SIZE >= 1, "1 or more"),
        ("VAL.CROP_PCT", 0.1 <= val.CROP_PCT <= 1, "0.1 to 1.0"),
        ("VAL.INTERPOLATION", val.INTERPOLATION in INTERPOLATIONS, "bilinear or bicubic"),
        ("VAL.BEST", val.BEST in ("ema", "raw"), "ema or raw"),
        ("VAL.CROP_MODE", val.CROP_MODE in CROP_MODES, "center or squash"),
        ("VAL.EVERY", val.EVERY >= 1, "1 or more"),
        ("VAL.LOG_EVERY", val.LOG_EVERY >= 1, "1 or more"),
    ]  # fmt: skip
    values = dict(_leaves(cfg))
    rules += [(key, math.isfinite(value), "finite") for key, value in values.items() if isinstance(value, float)]
    for key, holds, allowed in rules:
        if not holds:
            raise UserError(f"{key} is {_brief(values[key])} but must be {allowed}")
