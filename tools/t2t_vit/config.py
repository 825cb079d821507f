"""Settings: defaults, overridden by a YAML file, overridden by KEY VALUE pairs on the command line.

The defaults are the official recipe of the lite T2T-ViTs (main.py of yitu-opensource/T2T-ViT). A file in configs/
contains only what differs. Paths in a YAML file are relative to the repository, paths on the command line to the
current folder. This module does not import paddle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

from t2t_vit.common.errors import UserError
from t2t_vit.common.plain_yaml import read_config
from t2t_vit.config_values import check, fit_short_run, leaves, put, set_value, value_of
from t2t_vit.spellings import refusal

_PACKAGE, _CHECKOUT = (Path(__file__).resolve().parents[i] for i in (0, 2))
# Root of the repository. An installed package has none; paths are then relative to the current folder. It has configs/.
ROOT = _CHECKOUT if (_CHECKOUT / "configs").is_dir() else Path()

_C = CN()
_C.NAME = ""  # name of the run, its folder and its log; "" = name of the config file
_C.SEED = 42  # random seed of initial weights, image order, augmentation and dropout
_C.DEVICE = ""  # cpu, gpu or gpu:N; "" = a GPU if there is one
_C.OUTPUT = "output"  # folder of the run folders
_C.LOG = "log"  # folder of the text logs

_C.CPU = CN()  # for training and eager inference without a GPU
_C.CPU.MICRO_BATCH = 4  # 224x224 images per thread at a time (more if smaller); 0 = the whole batch
_C.CPU.FAST_OPS = True  # faster gradients of linear layers and LayerNorm on a CPU

_C.MODEL = CN()
_C.MODEL.NAME = "t2t_vit_7"  # any of t2t_vit.list_models(); "" = the model of the weights in PRETRAINED
_C.MODEL.PRETRAINED = ""  # weights to start from or to use: file, URL or published name; "" = none, or the run's best
_C.MODEL.POS_RESIZE = "bicubic"  # position embedding for another image size: bicubic, or sinusoid (recompute the table)
_C.MODEL.NUM_CLASSES = 1000  # 0 = number of classes of the data set, or of the weights
_C.MODEL.DROP_RATE = 0.0  # dropout in the backbone
_C.MODEL.ATTN_DROP_RATE = 0.0  # dropout of attention weights in the backbone
_C.MODEL.DROP_PATH_RATE = 0.1  # stochastic depth: rises linearly from 0 in the first block to this in the last
_C.MODEL.FUSED_ATTENTION = False  # Paddle's FlashAttention; only with AMP on an Ampere or newer GPU
_C.MODEL.QK_SCALE = 0.0  # scale of q.k in the backbone; 0.0 or None = head_dim ** -0.5
_C.MODEL.T2T = CN()  # overrides of the variant MODEL.NAME; 0, 0.0, "" or [] = as in the variant
_C.MODEL.T2T.EMBED_DIM = 0  # width of the backbone
_C.MODEL.T2T.DEPTH = 0  # blocks
_C.MODEL.T2T.STAGES = []  # blocks per stage of a dense backbone, which has no DEPTH
_C.MODEL.T2T.GROWTH_RATE = 0  # channels that each block of a dense backbone appends
_C.MODEL.T2T.BLOCK = ""  # plain, se (squeeze-and-excitation), ghost or dense
_C.MODEL.T2T.NUM_HEADS = 0
_C.MODEL.T2T.MLP_RATIO = 0.0  # hidden width of an MLP / EMBED_DIM
_C.MODEL.T2T.TOKENS_TYPE = ""  # performer, transformer, convolution, or patch (the patch embedding of a ViT)
_C.MODEL.T2T.TOKEN_DIM = 0  # width inside the T2T module
_C.MODEL.T2T.SPLITS = []  # [[kernel, stride, padding], ...] of the soft splits, in pixels or tokens; one for patch
_C.MODEL.PIT = CN()  # the same for a PiT
_C.MODEL.PIT.PATCH_SIZE = 0  # pixels
_C.MODEL.PIT.STRIDE = 0  # pixels from one patch to the next
_C.MODEL.PIT.BASE_DIMS = []  # width of a head, per stage
_C.MODEL.PIT.DEPTH = []  # blocks, per stage
_C.MODEL.PIT.HEADS = []  # heads, per stage
_C.MODEL.PIT.MLP_RATIO = 0.0  # hidden width of an MLP / width

_C.DISTILL = CN()
_C.DISTILL.TYPE = ""  # distillation: hard (the teacher's top class), soft (its probabilities), "" = off
_C.DISTILL.TEACHER = ""  # any of t2t_vit.list_models() or paddle.vision.models (resnet50), or a config file
_C.DISTILL.WEIGHTS = ""  # the teacher's weights: file, URL or published name; "" = best.pdparams beside the config file
_C.DISTILL.ALPHA = 0.5  # weight of the distillation loss
_C.DISTILL.TAU = 1.0  # temperature of soft distillation

_C.DATA = CN()
_C.DATA.NAME = "ImageNet"  # printed with the accuracies; "" = name of the folder PATH
_C.DATA.PATH = "datasets/imagenet"  # folder with train/ and val/
_C.DATA.VAL_FRACTION = 0.0  # fraction of each class to validate on if PATH has no val/; 0.0 = none
_C.DATA.TRAIN_LIST = ""  # file of "relative/path label" lines, relative to PATH; "" = class folders
_C.DATA.VAL_LIST = ""
_C.DATA.CLASSES = "imagenet1k"  # class list: a file, imagenet1k, or "" = classes.txt in PATH, else the folder names
_C.DATA.CHANNELS = 3  # 3 RGB or 1 grey; 0 = as the weights in MODEL.PRETRAINED have it, or the default without them
_C.DATA.IMAGE_SIZE = 224  # height and width of the model's input, pixels; 0 = likewise
_C.DATA.MEAN = [0.485, 0.456, 0.406]  # per channel, of values in 0..1; [] = likewise
_C.DATA.STD = [0.229, 0.224, 0.225]  # [] = likewise
_C.DATA.EXIF = "auto"  # camera rotation: upright, ignore, or auto (ignore for ImageNet, as the official code does)
_C.DATA.GREY_BITS = 16  # bits that hold values in 16-bit grey images; 12 for many cameras and scanners
_C.DATA.NUM_WORKERS = 8  # loader processes per training process; 0 = read in the training process
_C.DATA.READER = "turbo"  # reader of training images: turbo (libjpeg-turbo and SIMD resizing, if installed) or pillow
_C.DATA.ON_ERROR = "raise"  # unreadable training image: raise, or skip (up to 3 images or 1% of an epoch)

_C.AUG = CN()
_C.AUG.SCALE = [0.08, 1.0]  # random-resized crop: area of the crop / area of the image
_C.AUG.RATIO = [3 / 4, 4 / 3]  # width / height of the crop
_C.AUG.PADDED_CROP = 0.0  # padded crop instead: pad by this fraction of the side (CIFAR: 0.125); 0.0 = off
_C.AUG.INTERPOLATION = "random"  # bilinear, bicubic, or random: one of them for each image
_C.AUG.HFLIP = 0.5  # probability of a horizontal flip
_C.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # rand-... (RandAugment), original or v0 (AutoAugment), 3a, or ""
_C.AUG.COLOR_JITTER = 0.4  # scales brightness, contrast, saturation by 1 +- this; only if AUTO_AUGMENT is "" or 3a
_C.AUG.ERASE_PROB = 0.25  # probability of random erasing
_C.AUG.ERASE_MODE = "pixel"  # fill of erased boxes: pixel (noise), rand (one colour) or const (the mean)
_C.AUG.ERASE_COUNT = 1  # largest number of boxes per image
_C.AUG.ERASE_MIXED = True  # erase after mixing, as T2T-ViT does; False: before, as DeiT does
_C.AUG.MIXUP = 0.8  # alpha of mixup's Beta distribution; 0.0 = no mixup
_C.AUG.CUTMIX = 1.0  # alpha of cutmix's Beta distribution; 0.0 = no cutmix
_C.AUG.CUTMIX_MINMAX = []  # [smallest, largest] side of the cut box / side of the image; [] = from the Beta
_C.AUG.MIX_PROB = 1.0  # probability of mixing
_C.AUG.MIX_SWITCH_PROB = 0.5  # probability of cutmix if both are on
_C.AUG.MIX_MODE = "batch"  # batch: one draw per batch; pair: one per pair of images; elem: one per image
_C.AUG.MIX_OFF_EPOCH = 0  # stop mixing at this epoch (counted from 0); 0 = never stop
_C.AUG.REPEATS = 1  # repeated augmentation: copies of each image; an epoch then uses 1/REPEATS of the images

_C.TRAIN = CN()
_C.TRAIN.BATCH_SIZE = 64  # images per process and forward pass
_C.TRAIN.ACCUM_STEPS = 1  # gradient accumulation: passes per step
_C.TRAIN.GLOBAL_BATCH = 0  # images per step over all processes; sets ACCUM_STEPS. 0 = use ACCUM_STEPS
_C.TRAIN.SAMPLER = ""  # classes of any size equally often per epoch: balanced, sqrt (half-way), "" = each image once
_C.TRAIN.EPOCHS = 300  # epochs of warm-up and cosine
_C.TRAIN.COOLDOWN_EPOCHS = 10  # more epochs, at MIN_LR; at most EPOCHS / 10, unless set where EPOCHS is set
_C.TRAIN.WARMUP_EPOCHS = 10  # at most EPOCHS / 3, unless set where EPOCHS is set
_C.TRAIN.OPTIMIZER = "adamw"  # adamw, or sgd (with momentum, as in official fine-tuning)
_C.TRAIN.BASE_LR = 1e-3  # learning rate, tuned for a global batch of 512; never scaled by the batch size
_C.TRAIN.WARMUP_LR = 1e-6  # learning rate of epoch 0
_C.TRAIN.MIN_LR = 1e-5
_C.TRAIN.BACKBONE_LR = 0.0  # BASE_LR of everything except the head; 0.0 = BASE_LR
_C.TRAIN.LAYER_DECAY = 1.0  # layer-wise lr decay: factor per layer below the head; fine-tuning: 0.65 to 0.9
_C.TRAIN.FREEZE = []  # patterns of parameters to freeze: "blocks.0.*"; ! makes an exception: ["*", "!head*"]
_C.TRAIN.WEIGHT_DECAY = 0.03
_C.TRAIN.BETAS = [0.9, 0.999]  # adamw
_C.TRAIN.EPSILON = 1e-8  # adamw
_C.TRAIN.MOMENTUM = 0.9  # sgd
_C.TRAIN.LABEL_SMOOTHING = 0.1  # applies to mixed targets too
_C.TRAIN.CLASS_WEIGHTS = ""  # weight of a class in the loss: auto (1 / its images), sqrt (1 / their root), "" = 1
_C.TRAIN.CLIP_NORM = 0.0  # largest global norm of the gradients; 0.0 = no clipping
_C.TRAIN.EMA_DECAY = 0.99996  # decay per step of the moving average of the weights (EMA); 0.0 = no EMA
_C.TRAIN.AMP = ""  # mixed precision on a GPU: O1 (per operation), O2 (weights too, with float32 copies); "" = float32
_C.TRAIN.AMP_DTYPE = "float16"  # float16 (with dynamic loss scaling) or bfloat16
_C.TRAIN.TF32 = False  # TF32 in training, on Ampere or newer GPUs; never in validation
_C.TRAIN.RECOMPUTE = False  # activation checkpointing: less memory, more time
_C.TRAIN.TO_STATIC = False  # compile the model by paddle.jit.to_static
_C.TRAIN.MAX_BAD_STEPS = 10  # stop at the next log line after this many consecutive non-finite steps
_C.TRAIN.LOG_EVERY = 50  # steps between log lines
_C.TRAIN.SAVE_MINUTES = 10.0  # minutes between saves within an epoch; 0.0 = save only after each epoch
_C.TRAIN.KEEP = 2  # number of states to keep: latest.pdparams and KEEP - 1 older ones
_C.TRAIN.TIME_LIMIT = ""  # 71h30m, 90m, 30s: save and stop before the job has run this long; "" = no limit

_C.VAL = CN()
_C.VAL.BATCH_SIZE = 128  # images per process and step
_C.VAL.CROP_PCT = 0.9  # resize the shorter side to floor(IMAGE_SIZE / CROP_PCT), then crop the centre
_C.VAL.INTERPOLATION = "bicubic"
_C.VAL.CROP_MODE = "center"  # center, or squash: resize to IMAGE_SIZE x IMAGE_SIZE without CROP_PCT
_C.VAL.TTA = ""  # average the logits of several views: flip (2), five (centre, corners) or ten (both); "" = one view
_C.VAL.CLASSES_ONLY = False  # predict only classes that have images in the split, as for ImageNet-A and -R
# Weights that are compared and saved as best.pdparams: ema (like the official T2T-ViT), raw (DeiT, PiT), or the better.
_C.VAL.BEST = "better"
_C.VAL.EVERY = 1  # epochs between validations; the last epoch is always validated
_C.VAL.LOG_EVERY = 10  # batches between log lines of val.py

OPEN_KEYS = ("MODEL.NAME", "DATA.CHANNELS", "DATA.IMAGE_SIZE", "DATA.MEAN", "DATA.STD")  # empty: as in the weights
CLASS_LISTS = {"imagenet1k": Path(__file__).parent / "data/imagenet1k_classes.tsv"}


def load_config(path: str | Path, overrides: Sequence[tuple[str, Any]] = (), notes: list[str] | None = None) -> CN:
    """Merge the defaults, a YAML file and (key, value) pairs into a frozen CfgNode.

    A line about values that are changed to fit others is added to the list `notes`.

    Raises UserError naming the file and key: missing or broken file, unknown key, wrong type, impossible value.
    """
    path = find_config(path)
    cfg = _C.clone()
    given = list(leaves(read_config(path)))
    known = all_keys()
    if text := refusal(path, [key for key, _ in given if key not in known]):
        raise UserError(text)
    for key, value in given:
        set_value(cfg, key, value, path)
    for key, value in overrides:
        set_value(cfg, key, value, "command line")
    overridden = [key for key, _ in overrides]
    if "TRAIN.ACCUM_STEPS" in overridden and "TRAIN.GLOBAL_BATCH" not in overridden:
        cfg.TRAIN.GLOBAL_BATCH = 0  # the command line wins over the file
    if (note := fit_short_run(cfg.TRAIN, dict(given), overridden)) and notes is not None:
        notes.append(note)
    cfg.NAME = cfg.NAME or path.stem
    check(cfg)
    cfg.freeze()
    return cfg


def default_config() -> CN:
    """A frozen copy of the defaults."""
    return with_keys(_C, {})


def with_keys(cfg: CN, values: dict[str, Any]) -> CN:
    """Return a frozen copy with {key: value} set. Raises ValueError for a wrong type, UserError for a wrong value."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in values.items():
        put(cfg, key, value)
    check(cfg)
    cfg.freeze()
    return cfg


def leaves_open(cfg: CN) -> bool:
    """Whether a config leaves one of the OPEN_KEYS to the weights."""
    return not all(value_of(cfg, key) for key in OPEN_KEYS)


def with_open_keys(cfg: CN, values: dict[str, Any]) -> CN:
    """Return the config with the OPEN_KEYS that it leaves open set from {key: value}, or else to the default.

    What differs from the variant comes along with MODEL.NAME, which stays open if `values` lacks it.
    """
    if not leaves_open(cfg):
        return cfg
    defaults = {key: value_of(_C, key) for key in OPEN_KEYS if key != "MODEL.NAME"}
    if (cfg.DATA.CHANNELS or values.get("DATA.CHANNELS")) == 1:  # as timm has it: the means of the three
        defaults |= {key: [round(sum(defaults[key]) / 3, 3)] for key in ("DATA.MEAN", "DATA.STD")}
    keys = list(OPEN_KEYS)
    if cfg.MODEL.NAME in ("", values.get("MODEL.NAME")):
        keys += [key for key in all_keys() if key.startswith(("MODEL.T2T.", "MODEL.PIT.", "MODEL.QK_SCALE"))]
    values = {**defaults, **values}
    return with_keys(cfg, {key: values[key] for key in keys if key in values and not value_of(cfg, key)})


def with_classes(cfg: CN, number: int) -> CN:
    """If MODEL.NUM_CLASSES is 0, return the config with `number` instead. Raises UserError for fewer than 2."""
    if not cfg.MODEL.NUM_CLASSES and number < 2:
        raise UserError(f"there is only {number} class, but a classifier needs 2 or more")
    return cfg if cfg.MODEL.NUM_CLASSES else with_keys(cfg, {"MODEL.NUM_CLASSES": number})


def all_keys() -> list[str]:
    """List all keys with their sections, such as "TRAIN.EPOCHS"."""
    return [key for key, _ in leaves(_C)]


def starts_like_a_key(word: str) -> bool:
    """True for a word like TRAIN.EPOCH whose first part is a section or key, even if the rest is unknown."""
    return word.split(".")[0] in _C


# --- Files ---


def find_config(path: str | Path) -> Path:
    """Path of a config file, relative to the current folder, the repository or the package. Raises UserError."""
    for candidate in (Path(path), ROOT / path, _PACKAGE / path):
        if candidate.is_file():
            return candidate
    if Path(path).is_dir():
        raise UserError(f"config {path} is a folder")
    available = ", ".join(sorted({p.name for place in (ROOT, _PACKAGE) for p in (place / "configs").glob("*.yaml")}))
    raise UserError(f"config {path} not found; configs/ contains {available or 'nothing'}")


def resolve(path: str | Path) -> Path:
    """Make a path from a config absolute. Relative paths start at the repository."""
    return (ROOT / os.path.expanduser(path)).absolute()


def class_list(cfg: CN) -> Path | None:
    """Path of the class list that DATA.CLASSES names, or None if it is empty."""
    name = cfg.DATA.CLASSES
    return CLASS_LISTS.get(name) or resolve(name) if name else None


def best_weights(cfg: CN) -> Path:
    """Return the path of the run's best.pdparams: in OUTPUT if it exists, else the published one (may be missing)."""
    own, published = (resolve(cfg.OUTPUT) / place / cfg.NAME / "best.pdparams" for place in ("", "pretrained"))
    return published if published.is_file() and not own.is_file() else own
