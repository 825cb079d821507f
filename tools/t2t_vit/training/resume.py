"""Find the state that a run continues from, and check that the settings still fit."""

import math
import platform
import subprocess
from pathlib import Path

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.common.runtime import asked_threads
from t2t_vit.config import ROOT, all_keys, default_config, with_keys, with_open_keys
from t2t_vit.config_values import RENAMED, leaves
from t2t_vit.data.crop_reader import reader_name
from t2t_vit.data.images import reading
from t2t_vit.parallel import processes
from t2t_vit.training import teacher
from t2t_vit.weights.build import first_other_class
from t2t_vit.weights.formats import read_tree

# Keys that change where a run writes or how fast it is, but not its result.
FREE_KEYS = {
    "NAME", "DEVICE", "OUTPUT", "LOG", "MODEL.PRETRAINED", "MODEL.POS_RESIZE", "DATA.NAME", "DATA.PATH", "DATA.CLASSES",
    "DATA.NUM_WORKERS", "DATA.READER", "DATA.ON_ERROR", "DISTILL.TEACHER", "DISTILL.WEIGHTS",
    "TRAIN.RECOMPUTE", "TRAIN.MAX_BAD_STEPS", "TRAIN.LOG_EVERY", "TRAIN.SAVE_MINUTES", "TRAIN.KEEP", "TRAIN.TIME_LIMIT",
    "VAL.BATCH_SIZE", "VAL.LOG_EVERY",
}  # fmt: skip
# Keys that change only the rounding.
_ROUNDING_KEYS = {"CPU.MICRO_BATCH", "CPU.FAST_OPS", "MODEL.FUSED_ATTENTION", "TRAIN.TF32", "TRAIN.TO_STATIC"}
_SPLIT_KEYS = ("TRAIN.BATCH_SIZE", "TRAIN.ACCUM_STEPS")
_STEP_KEYS = {*_SPLIT_KEYS, "TRAIN.GLOBAL_BATCH"}
# {part of a setting: name}. If these change, the run is no longer bit-exact. States of earlier versions lack some.
_ROUNDING_PARTS = {
    "processes": "number of processes", "threads": "number of threads", "paddle": "PaddlePaddle",
    "reader": "image reader", "code": "code version", "train_sizes": "checksum of the training files' sizes",
    "val_sizes": "checksum of the validation files' sizes",
}  # fmt: skip
# {part that changes the result: (name, value to assume if a state of an earlier version lacks it)}
_RESULT_PARTS = {
    "train_images": ("number of train images", None),
    "train_names": ("checksum of the train images' names and labels", None),
    "val_images": ("number of val images", None),
    "val_names": ("checksum of the val images' names and labels", None),
    "upright": ("rotation of photos by EXIF (none with DATA.EXIF ignore)", False),
    "teacher": ("checksum of the teacher's weights", ""),
}
# Keys that earlier versions set differently for the same command.
_CHANGED_DEFAULTS = ("TRAIN.WARMUP_EPOCHS", "TRAIN.COOLDOWN_EPOCHS", "TRAIN.WARMUP_LR")
# Keys that differ if a run is made longer or shorter; the warm-up and the cool-down follow (`fit_short_run`).
_LENGTH_KEYS = {"TRAIN.EPOCHS", "TRAIN.WARMUP_EPOCHS", "TRAIN.COOLDOWN_EPOCHS"}
_TYPES = {"model": dict, "ema": dict, "optimizer": dict, "scaler": dict, "epoch": int, "images": int, "meter": dict,
          "best_top1": float, "best_epoch": int, "scores": dict, "streak": np.ndarray, "validation_seconds": float,
          "sizes": dict, "setting": dict}  # fmt: skip


# --- The state ---


def find_state(choice, run):
    """Find the state that --resume `choice` (auto, none or a file) asks for.

    Returns (file, state), or (None, None) if there is nothing to resume.

    Raises UserError if the file is not a training state, or if all states of the run folder are damaged.
    """
    if choice == "none":
        return None, None
    if choice != "auto":
        if not Path(choice).is_file():
            raise UserError(f"--resume {choice}: no such file; give a latest.pdparams, auto or none")
        return Path(choice), _read(Path(choice))
    paths = run.states()
    for path in paths:
        try:
            return path, _read(path)
        except UserError as error:
            if path == paths[-1]:
                raise UserError(f"{error}; --resume none starts a new run") from error
            log.warning("warning: %s; trying the state before it", error)
    return None, None


def _read(path):
    program, state = read_tree(path)
    if program != "Paddle":
        raise UserError(
            f"{path} is a {program} file, not a training state; --pretrained {path} starts from its weights"
        )
    wrong = [key for key, kind in _TYPES.items() if not isinstance(state.get(key), kind)]
    if wrong:
        raise UserError(
            f"{path} is not a training state (no {', '.join(wrong[:3])}); give a latest.pdparams, or start "
            "from weights with --pretrained FILE"
        )
    try:
        _config(state["setting"])
    except ValueError as error:
        raise UserError(f"{path}: the config in it is damaged ({error})") from None
    return state


# --- The setting ---


def setting(cfg, splits):
    """Collect everything except the weights that a run depends on. It is saved in each state."""
    return {
        "config": cfg.dump(),
        "train_images": len(splits["train"]),
        "val_images": len(splits["val"]),
        "train_names": splits["train"].checksum(),
        "val_names": splits["val"].checksum(),
        "train_sizes": splits["train"].sizes_checksum(),
        "val_sizes": splits["val"].sizes_checksum(),
        "teacher": teacher.checksum(cfg),
        "upright": reading(cfg)["upright"],
        "processes": processes.world_size(),
        "threads": asked_threads() if paddle.get_device() == "cpu" else 0,
        "reader": reader_name(cfg.DATA.READER),
        "paddle": paddle.__version__,
        "python": platform.python_version(),
        "code": _code_version(),
    }


def _code_version():
    """Return the Git commit, with + if files have changed since; "" for an installed package or without git."""
    if not ROOT.is_absolute():
        return ""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def check_setting(then, now, path, force=False):
    """Compare the `setting` of the state in `path` with the current one.

    Unless `force` is set, raises UserError with all differences that change the result. Differences that change only
    the rounding are logged as warnings.
    """
    differences = _differences(then, now)
    before, after = _config(then), _config(now)
    old_images, new_images = _step_images(then, before), _step_images(now, after)
    if differences and not force:
        raise UserError(f"{path} {_refusal(differences, before, after, old_images, new_images)}")
    for difference in _described(differences):
        log.warning("warning: continuing with other settings (--force): %s", difference)
    if old_images != new_images and not differences:
        log.warning(
            "warning: a step had %d images and now has %d; TRAIN.GLOBAL_BATCH %d keeps the old number",
            old_images, new_images, old_images,
        )  # fmt: skip
    if after["MODEL.PRETRAINED"] not in ("", before["MODEL.PRETRAINED"]):
        log.warning(
            "warning: MODEL.PRETRAINED %s (--pretrained) has no effect, because the run continues from its state; "
            "--resume none starts a new run",
            after["MODEL.PRETRAINED"],
        )
    if before["VAL.BEST"] != after["VAL.BEST"]:
        log.warning(
            "warning: VAL.BEST was %s and is now %s: from here on, best.pdparams is chosen differently; the training "
            "is the same", before["VAL.BEST"], after["VAL.BEST"],
        )  # fmt: skip
    changes = [(key, before[key], after[key]) for key in sorted(_ROUNDING_KEYS) + list(_SPLIT_KEYS)]
    changes += [(name, then[part], now[part]) for part, name in _ROUNDING_PARTS.items() if part in then]
    for name, old, new in changes:
        if old != new:
            old, new = ("unknown" if value == "" else value for value in (old, new))
            log.warning("warning: %s was %s and is now %s: the run is no longer bit-exact", name, old, new)


def _refusal(differences, before, after, old_images, new_images):
    """Say why a run cannot continue from a state, and what to do. The arguments are those of `check_setting`."""
    if "TRAIN.EPOCHS" in (names := {name for name, _, _ in differences}) and names <= _LENGTH_KEYS:
        return (
            f"is of a run with TRAIN.EPOCHS {before['TRAIN.EPOCHS']}, not {after['TRAIN.EPOCHS']}: --force continues "
            "it with the new number and its learning rates, --resume none starts a new run"
        )
    hint = f"TRAIN.GLOBAL_BATCH {old_images} keeps its images per step, " if old_images != new_images else ""
    kept = [f"{key} {before[key]}" for key in _CHANGED_DEFAULTS if before[key] != after[key]]
    hint += f"{' '.join(kept)} keeps the run's, " if kept else ""
    return (
        f"has other settings: {'; '.join(_described(differences))}; {hint}--force continues with the current ones, "
        "--resume none starts a new run, another NAME gives this run its own folder"
    )


def check_same_everywhere(setting):
    """Raise UserError if the settings of this process differ from those of rank 0."""
    expected = processes.from_main(setting)
    if expected != setting and (differences := _differences(expected, setting)):
        described = "; ".join(_described(differences))
        raise UserError(f"rank {processes.rank()} has other settings than rank 0: {described}")


def check_classes(classes, path, force=False):
    """Raise UserError if the class list beside a state differs from the data's, unless `force` is set."""
    other = first_other_class(classes, path)
    if other and not force:
        raise UserError(f"{other}; DATA.CLASSES {path.with_name('classes.txt')} keeps the classes of the run")


def with_model_of_state(cfg, state):
    """Return the config with the keys that it leaves open as the run of a state has them."""
    return with_open_keys(cfg, _config(state["setting"]))


def with_start_of(cfg, state):
    """Return the config with the MODEL.PRETRAINED that the run started with."""
    return with_keys(cfg, {"MODEL.PRETRAINED": _config(state["setting"])["MODEL.PRETRAINED"]})


def _differences(then, now):
    """List the differences between two settings that change the result: (name, old value, new value)."""
    before, after = _config(then), _config(now)
    keys = [key for key in all_keys() if key not in FREE_KEYS | _ROUNDING_KEYS | {"VAL.BEST"}]
    if _step_images(then, before) == _step_images(now, after):
        keys = [key for key in keys if key not in _STEP_KEYS]  # the step is the same, only split differently
    pairs = [(key, before[key], after[key]) for key in keys]
    for part, (name, missing) in _RESULT_PARTS.items():
        pairs.append((name, then.get(part, now[part] if missing is None else missing), now[part]))
    return [(name, old, new) for name, old, new in pairs if old != new]


def _described(differences):
    return [f"{name} was {old!r}, is {new!r}" for name, old, new in differences]


def _step_images(setting, config):
    """Number of images per step over all processes."""
    return math.prod(config[key] for key in _SPLIT_KEYS) * setting.get("processes", 1)


def _config(setting):
    """Return {key: value} of a setting. Newer keys have their defaults. Raises ValueError if it is not YAML."""
    stored = {RENAMED.get(key, key): value for key, value in leaves(load_yaml(str(setting.get("config"))))}
    return {**dict(leaves(default_config())), **stored}
