"""Which state a run continues from, and whether it may."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import asked_threads
from t2t_vit.config import ROOT, all_keys, stored_values, with_keys
from t2t_vit.data.images import reader_name, reading
from t2t_vit.parallel import processes
from t2t_vit.training import teacher
from t2t_vit.training.meter import is_meter_state
from t2t_vit.weights.build import first_other_class
from t2t_vit.weights.formats import read_tree

# Keys that decide where and how fast a run goes, not where it arrives.
FREE_KEYS = {
    "NAME", "DEVICE", "OUTPUT", "LOG", "MODEL.PRETRAINED", "MODEL.POS_RESIZE", "DATA.NAME", "DATA.PATH", "DATA.CLASSES",
    "DATA.NUM_WORKERS", "DATA.READER", "DATA.ON_ERROR", "DISTILL.TEACHER", "DISTILL.WEIGHTS",
    "TRAIN.RECOMPUTE", "TRAIN.MAX_BAD_STEPS", "TRAIN.LOG_EVERY", "TRAIN.SAVE_MINUTES", "TRAIN.KEEP", "TRAIN.TIME_LIMIT",
    "VAL.BATCH_SIZE", "VAL.LOG_EVERY",
}  # fmt: skip
# And those that change the rounding alone.
_ROUNDING_KEYS = {"CPU.MICRO_BATCH", "CPU.FAST_OPS", "MODEL.FUSED_ATTENTION", "TRAIN.TF32", "TRAIN.TO_STATIC"}
# Of a setting: what costs only exactness if it changes, and which of it states of earlier versions lack.
_EXACT = {
    "processes": "process(es)", "threads": "thread(s)", "paddle": "PaddlePaddle", "reader": "image reader",
    "code": "code version", "train_sizes": "checksum of the training files' sizes",
    "val_sizes": "checksum of the validation files' sizes",
}  # fmt: skip
_YOUNGER = {"threads", "train_sizes", "val_sizes"}
_BATCH_KEYS = ("TRAIN.BATCH_SIZE", "TRAIN.ACCUM_STEPS")
_STEP_KEYS = {*_BATCH_KEYS, "TRAIN.GLOBAL_BATCH"}
_TYPES = {"model": dict, "ema": dict, "optimizer": dict, "scaler": dict, "epoch": int, "images": int, "meter": dict,
          "best_top1": float, "best_epoch": int, "scores": dict, "streak": np.ndarray, "validation_seconds": float,
          "sizes": dict, "setting": dict}  # fmt: skip


def find_state(choice, run):
    """(file, state) that --resume `choice` means: auto, none or a file. (None, None) if there is nothing to resume.

    Raises UserError if the file is no training state, or if all states of the run folder are damaged.
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
                raise UserError(f"{error}; --resume none starts anew") from error
            log.warning("warning: %s; trying the state before it", error)
    return None, None


def _read(path):
    program, state = read_tree(path)
    if program != "Paddle":
        raise UserError(
            f"{path} is a {program} file, which cannot be resumed here: --pretrained {path} starts a training from its "
            "weights, --resume takes a latest.pdparams"
        )
    wrong = [key for key, kind in _TYPES.items() if not isinstance(state.get(key), kind)]
    if wrong:
        raise UserError(
            f"{path} holds no training state to resume (no {', '.join(wrong[:3])}); give a latest.pdparams, or start "
            "from weights with --pretrained FILE"
        )
    try:
        config = _config(state["setting"])
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: the config in it is damaged ({error})") from None
    if wrong := _impossible(state, config):
        raise UserError(f"{path} was not saved by a run: its {wrong} has an impossible value")
    return state


def _impossible(state, config):
    """Name of the first part of a state with an impossible value, or ""."""
    meter, setting = state["meter"], state["setting"]
    parts = {
        "epoch": _is_count(state["epoch"]),
        "images": _is_count(state["images"]),
        "best_epoch": _is_count(state["best_epoch"]),
        "best_top1": -1 <= state["best_top1"] <= 1,
        "scores": all(type(top1) is float for top1 in state["scores"].values()),
        "streak": state["streak"].shape == () and state["streak"].dtype == np.float32 and state["streak"] >= 0,
        "sizes": all(map(_is_count, state["sizes"].values())),
        "setting": all(type(value) in (str, int, bool) for value in setting.values()),
        "processes": _is_count(setting.get("processes", 1)) and setting.get("processes", 1) >= 1,
        **{key: _is_count(config[key]) and config[key] >= 1 for key in _BATCH_KEYS},
        "meter": not meter or is_meter_state(meter),
    }
    return next((name for name, is_right in parts.items() if not is_right), "")


def _is_count(value):
    return type(value) is int and 0 <= value < 2**40


def setting(cfg, splits):
    """What a state says of the run that wrote it."""
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
    """Git commit, with + if files were changed since; "" where there is no git or no repository."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def check_setting(then, now, path, force=False):
    """Compare the `setting` of a state in `path` with today's.

    Raises UserError listing what differs in what matters, unless `force`; what only costs exactness is a warning.
    """
    differences = _differences(then, now)
    if differences and not force:
        raise UserError(
            f"{path} is of a run with other settings: {'; '.join(differences)}; --force goes on with those of now, "
            "--resume none starts anew, NAME gives this run a folder of its own"
        )
    for difference in differences:
        log.warning("warning: going on with other settings (--force): %s", difference)
    (old_split, old_images), (new_split, new_images) = (_step(side) for side in (then, now))
    if old_split != new_split:
        log.warning(
            "warning: %s were %s and are now %s: no longer bit-exact", " and ".join(_BATCH_KEYS), old_split, new_split
        )
    if old_images != new_images and not differences:
        log.warning(
            "warning: a step had %s images and has now %s: set TRAIN.BATCH_SIZE or TRAIN.ACCUM_STEPS to keep them",
            old_images,
            new_images,
        )
    before, after = _config(then), _config(now)
    if after["MODEL.PRETRAINED"] not in ("", before["MODEL.PRETRAINED"]):
        log.warning(
            "warning: MODEL.PRETRAINED %s (--pretrained) has no effect, as the run continues from its state; --resume "
            "none starts anew",
            after["MODEL.PRETRAINED"],
        )
    for key in sorted(_ROUNDING_KEYS):
        if before[key] != after[key]:
            log.warning("warning: %s was %s and is now %s: no longer bit-exact", key, before[key], after[key])
    for key, what in _EXACT.items():
        if then.get(key) != now[key] and not (key in _YOUNGER and key not in then):
            log.warning(
                "warning: %s was %s and is now %s: no longer bit-exact, the run continues at the right image",
                what,
                then.get(key) or "unknown",
                now[key] or "unknown",
            )


def with_start_of(cfg, state):
    """The config with MODEL.PRETRAINED as it was when the run of the state started."""
    return with_keys(cfg, {"MODEL.PRETRAINED": _config(state["setting"])["MODEL.PRETRAINED"]})


def check_classes(classes, path, force=False):
    """Raise UserError, unless `force`, if the class list beside a state gives the ids other classes than the data."""
    other = first_other_class(classes, path)
    if other and not force:
        raise UserError(f"{other}; DATA.CLASSES {path.with_name('classes.txt')} keeps the classes of the run")


def check_same_everywhere(setting):
    """Raise UserError in a process whose settings are not those of the main one."""
    differences = _differences(processes.from_main(setting), setting)
    if differences:
        raise UserError(f"rank {processes.rank()} has other settings than rank 0: {'; '.join(differences)}")


def _differences(then, now):
    before, after = _config(then), _config(now)
    matters = [key for key in all_keys() if key not in FREE_KEYS | _ROUNDING_KEYS]
    if _step(then)[1] == _step(now)[1]:
        matters = [key for key in matters if key not in _STEP_KEYS]  # the same step, divided otherwise
    pairs = [(key, before[key], after[key]) for key in matters]
    for split in ("train", "val"):
        pairs.append((f"number of {split} images", then.get(f"{split}_images"), now[f"{split}_images"]))
        names = f"{split}_names"
        pairs.append((f"checksum of the {split} images' names and labels", then.get(names, now[names]), now[names]))
    # Before there was DATA.EXIF, no picture was rotated.
    pairs.append(
        ("rotation of photos by EXIF (none with DATA.EXIF ignore)", then.get("upright", False), now["upright"])
    )
    pairs.append(("checksum of the teacher's weights", then.get("teacher", ""), now["teacher"]))
    return [f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new]


def _step(setting):
    """([BATCH_SIZE, ACCUM_STEPS], images of one step of all processes)."""
    config = _config(setting)
    batch, passes = split = [config[key] for key in _BATCH_KEYS]
    return split, batch * passes * setting.get("processes", 1)


def _config(setting):
    """{key: value}. Of a key that is younger than the setting the default, which does what was done without it."""
    return stored_values(str(setting.get("config")))
