"""Check a data set: read every image, find problems that would stop or harm training, and suggest settings that fit."""

import argparse
import itertools
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, counted
from t2t_vit.common.files import check_outputs, write_text
from t2t_vit.config import all_keys, load_config, with_keys
from t2t_vit.data.classes import composed, load_classes, some
from t2t_vit.data.dataset import empty_classes, folder_ids, most_skipped, read_list
from t2t_vit.data.holdout import held_out
from t2t_vit.data.images import reading
from t2t_vit.data.index import class_folders, image_files, scan
from t2t_vit.data.layout import VAL_FRACTION, Layout
from t2t_vit.data.report import Findings, SplitReport, print_report, spread, to_json

_UNBALANCED = 10  # images of the largest class / images of the smallest
# Without --config, the config to start from depends on the median of the shorter sides in pixels.
CONFIGS = ((64, "configs/t2t_vit_7.yaml"), (24, "configs/cifar10.yaml"), (0, "configs/lit_data.yaml"))


def check(args: argparse.Namespace, cfg: CfgNode, overrides: Sequence[tuple[str, str]]) -> int:
    """Check the data set of a config and print the report. Returns the exit status: 1 if there is a fault, else 0.

    `args` are the options of tools/check_data.py, `overrides` the (key, value) pairs of the command line.
    """
    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs} but must be 1 or more")
    check_outputs([args.json], args.inputs)
    demanded = all_keys() if args.config else args.opts[::2]  # set by the user: a mismatch is a fault
    findings = Findings()
    suggest_fraction(cfg, findings, demanded)
    cfg = with_keys(cfg, findings.settings)
    splits, tool = find_splits(cfg, findings)
    for split in splits:
        split.read_images(reading(cfg), args.jobs)
    if not args.config:
        median = spread(sum((split.sides for split in splits), Counter()))[1]
        args.config = next(path for side, path in CONFIGS if median >= side)
        cfg = with_keys(load_config(args.config, overrides), findings.settings)
    judge_classes(cfg, splits, findings, demanded)
    judge_sizes(splits, findings)
    judge_images(cfg, splits, findings)
    judge_doubles(splits, findings)
    findings.command = command(args, tool, cfg, findings.settings)
    print_report(splits, findings)
    if args.json:
        write_text(args.json, json.dumps(to_json(splits, findings), indent=1) + "\n")
    if findings.faults:
        print(
            f"error: {counted(len(findings.faults), 'fault')} would stop or harm training, see above", file=sys.stderr
        )
    return 1 if findings.faults else 0


# --- Splits ---


def suggest_fraction(cfg, findings, demanded):
    """Suggest DATA.VAL_FRACTION if there is no validation split."""
    layout = Layout(cfg)
    if layout.shared or not layout.could_be_shared():
        return
    training = layout.own("train")
    folder = training or layout.root
    if any(len(image_files(folder / name)) < 2 for name in class_folders(folder)):
        return
    line = f"{folder} has no validation folder: DATA.VAL_FRACTION {VAL_FRACTION} holds out a part of it for validation"
    (findings.faults if training and "DATA.VAL_FRACTION" in demanded else findings.notes).append(line)
    findings.settings["DATA.VAL_FRACTION"] = VAL_FRACTION


def find_splits(cfg, findings):
    """Return (list of `SplitReport`, "train" or "val": the command that can use the data).

    Unlike `load_data`, this also returns splits whose classes do not fit the class list.
    """
    layout, splits = Layout(cfg), []
    for name, list_file in layout.lists.items():
        try:
            if list_file:
                splits.append(split_of_list(cfg, layout, name))
            elif layout.shared:
                splits += splits_of_folder(cfg, layout, name, findings) if name == "train" else []
            elif layout.folder(name) or name == "val" and not layout.given:
                splits += splits_of_folder(cfg, layout, name, findings)
        except UserError as error:
            findings.faults.append(str(error))
    if not splits:
        raise UserError(findings.faults[0])
    if layout.lists["train"] or layout.folder("train"):  # even if the split cannot be read
        return splits, "train"
    findings.notes.append("there is no training split: this data can only be used for validation")
    return splits, "val"


def split_of_list(cfg, layout, name):
    """Read a split from a list file. A label without an entry in the class list stays a number."""
    classes = _classes_of(cfg)[0]
    named = classes if classes and classes.source != "MODEL.NUM_CLASSES" else None
    place, misfit = (layout.root, name, layout.root / layout.lists[name]), ""
    try:
        listed = read_list(*place, named)
    except UserError as error:  # a label is out of range; any other error is raised again
        misfit, listed = str(error), read_list(*place, named, any_number=True)
    names = dict(enumerate(named.folders)) if named else {}
    counts = Counter(names.get(label, label) for label in listed.labels.tolist())
    return SplitReport(name, listed.source, listed.paths, dict(counts), misfit)


def splits_of_folder(cfg, layout, name, findings):
    """Read a split from class folders, or both splits if DATA.VAL_FRACTION divides the folder."""
    folder = layout.require(name)
    found, paths, class_of = scan(folder)
    if not found:
        findings.faults.append(f"{folder} has no class folders")
    elif not len(paths):
        findings.faults.append(f"the class folders of {folder} contain no images")
    parts = {name: np.ones(len(paths), bool)}
    if layout.shared:
        try:
            validates = held_out(paths, class_of, found, cfg.DATA.VAL_FRACTION, cfg.SEED)
            parts = {"train": ~validates, "val": validates}
        except UserError as error:
            findings.faults.append(str(error))
    names, reports = [composed(name) for name in found], []
    for part, chosen in parts.items():
        classes = Counter(dict.fromkeys(names, 0))
        classes.update(names[i] for i in class_of[chosen])
        reports.append(SplitReport(part, str(folder), paths.where(chosen), dict(classes)))
    return reports


# --- Findings ---


def judge_classes(cfg, splits, findings, demanded):
    """Compare the classes with each other and with the class list."""
    classes, fault = _classes_of(cfg)
    if fault and fault not in findings.faults and any(split.classes for split in splits):
        findings.faults.append(fault)
    is_evaluated = [split.name for split in splits] == ["val"]
    ids = folder_ids(splits[0].classes, classes, by_number=is_evaluated) if classes else {}
    known = {*ids, *ids.values()}
    shown = [{name for name, number in split.classes.items() if number} for split in splits]
    absent = shown[1] - shown[0] if len(splits) == 2 else set()
    if absent:
        names = some(sorted(map(str, absent)))
        findings.faults.append(f"{len(absent)} of val's classes without an image in train: {names}")
    # If the user did not set DATA.CLASSES, a misfit is not a fault: another class list is suggested below.
    is_held_to_list = "DATA.CLASSES" in demanded or not cfg.DATA.CLASSES
    fits = classes is not None
    for split, present in zip(splits, shown):
        unknown = split.classes.keys() - known if classes else set()
        fits = fits and not unknown
        if is_held_to_list and (split.misfit or unknown - absent):
            line = f"{split.source} has {counted(len(unknown), 'class')} not in {classes.source}: "
            findings.faults.append(split.misfit or line + some(sorted(map(str, unknown))))
        numbers = {ids.get(name, name) for name in present}
        empty = [name for i, name in enumerate(classes.folders) if i not in numbers] if classes else []
        if empty and not unknown:
            findings.notes.append(empty_classes(empty, len(classes), split.name, split.name, cfg))
    labels = [label for split in splits for label in split.classes if isinstance(label, int)]
    if classes and classes.source != "MODEL.NUM_CLASSES" and not cfg.DATA.CLASSES:
        labels = []  # classes.txt determines the number of classes
    suggest_classes(cfg, classes if fits else None, labels, findings, demanded)


def judge_sizes(splits, findings):
    """Report training classes of very different sizes."""
    sizes = [number for split in splits if split.name == "train" for number in split.classes.values() if number]
    if sizes and max(sizes) >= _UNBALANCED * min(sizes):
        line = f"the classes of train have {min(sizes):,} to {max(sizes):,} images"
        findings.notes.append(f"{line}; TRAIN.SAMPLER balanced or TRAIN.CLASS_WEIGHTS auto evens them out")


def _classes_of(cfg):
    """Return (`ClassList` of the config, or None; reason why there is none)."""
    try:
        return load_classes(cfg, Layout(cfg)), None
    except UserError as error:
        return None, str(error)


def suggest_classes(cfg, classes, labels, findings, demanded):
    """Suggest settings for the classes.

    `classes` is the config's class list if it fits the data, else None. `labels` are the numbers in list files.
    """
    if not classes and cfg.DATA.CLASSES:
        findings.settings["DATA.CLASSES"] = ""
        classes = _classes_of(with_keys(cfg, {"DATA.CLASSES": ""}))[0]
    elif classes and cfg.MODEL.NUM_CLASSES not in (0, len(classes)) and "MODEL.NUM_CLASSES" in demanded:
        line = f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES} but {classes.source} has {len(classes)} classes"
        findings.faults.append(line)
    is_numbered = labels and (not classes or classes.source == "MODEL.NUM_CLASSES")
    number = max(labels) + 1 if is_numbered else len(classes or ())
    if number == 1:
        findings.faults.append("all images belong to one class; training needs two or more")
    elif number and cfg.MODEL.NUM_CLASSES not in (0, number):
        findings.settings["MODEL.NUM_CLASSES"] = number
    name = os.path.basename(cfg.DATA.PATH.rstrip("/"))
    if findings.settings and name:  # the config is for other data, so its run needs another name
        findings.settings |= {"DATA.NAME": name, "NAME": name}


def judge_images(cfg, splits, findings):
    """Report unreadable images, and suggest a smaller batch if there are too few images for one step."""
    for split in splits:
        bad, number = len(split.unreadable), len(split.paths)
        if bad:
            findings.faults.append(f"{bad:,} of {number:,} images of {split.name} cannot be read")
        step = cfg.TRAIN.GLOBAL_BATCH or cfg.TRAIN.BATCH_SIZE * cfg.TRAIN.ACCUM_STEPS
        if split.name == "train" and 0 < number < step:
            batch = min(cfg.TRAIN.BATCH_SIZE, max(1, number // cfg.TRAIN.ACCUM_STEPS // 4))
            findings.settings["TRAIN.BATCH_SIZE"] = batch
            step = batch * cfg.TRAIN.ACCUM_STEPS
            if cfg.TRAIN.GLOBAL_BATCH:
                findings.settings["TRAIN.GLOBAL_BATCH"] = step
        # The limit counts the images of an epoch, without its incomplete last step.
        if bad and split.name == "train" and bad <= most_skipped(number // step * step):
            findings.settings["DATA.ON_ERROR"] = "skip"
        elif bad:
            why = "too many to skip" if split.name == "train" else "validation counts every image"
            findings.notes.append(f"repair or remove the unreadable images of {split.name}: {why}")


def judge_doubles(splits, findings):
    """Report images with identical content: within a split, and in both train and val."""
    first = {}  # {digest: (split, path)}
    doubles = {}  # {(split of the first image, split of the other): [(path, path), ...]}
    for split in splits:
        for path, digest in zip(split.paths, split.digests):
            if digest in first:
                doubles.setdefault((first[digest][0], split.name), []).append((first[digest][1], path))
            elif digest:
                first[digest] = split.name, path
    for (one, other), pairs in doubles.items():
        line = f"{len(pairs):,} images of {other} are copies of another image"
        if one != other:
            line = f"{len(pairs):,} images of val are copies of images of train, which makes the accuracy too high"
        findings.notes.append(f"{line}: {pairs[0][0]} and {pairs[0][1]}")


def command(args, tool, cfg, settings):
    """Return a command to copy and paste. It trains, or validates if there is no training split."""
    words = ["python", f"tools/{tool}.py", "--config", args.config]
    words += ["--data-path", args.data_path] if args.data_path else []
    if args.weights_named or not cfg.MODEL.NAME:
        words += ["--pretrained", args.pretrained if args.weights_named else "WEIGHTS"]
    pairs = dict(zip(args.opts[::2], args.opts[1::2])) | settings
    words += map(str, itertools.chain(*pairs.items()))
    return " ".join(shlex.quote(word) if word else '""' for word in words)
