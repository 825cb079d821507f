"""Check a data set: python tools/check_data.py [--config C] --data-path DIR [--jobs N] [--json FILE] [KEY VALUE ...].

Reads every image, and tells what would stop or spoil a training and which settings fit the data. What `load_data`
refuses is explained here, and the rest is checked all the same.
"""

import itertools
import json
import math
import os
import shlex
import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field

from t2t_vit import cli

SHOWN = 10  # unreadable files of a split that are printed; --json has all
# Without --config: what to start from, by the median of the shorter sides in pixels.
CONFIGS = ((64, "configs/t2t_vit_7.yaml"), (24, "configs/cifar10.yaml"), (0, "configs/lit_data.yaml"))


def main(args, cfg):
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.files import check_outputs, write_text
    from t2t_vit.config import all_keys, load_config, with_keys
    from t2t_vit.data.images import reading

    if args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs} but must be 1 or more")
    check_outputs([args.json], args.inputs)
    held_to = all_keys() if args.config else args.opts[::2]
    findings = Findings()
    suggest_share(cfg, findings, held_to)
    cfg = with_keys(cfg, findings.settings)
    splits, faults = find_splits(cfg)
    findings.faults += faults
    findings.notes += unused_folders(cfg, splits)
    for split in splits:
        read_images(split, reading(cfg), args.jobs)
    if not args.config:
        args.config = fitting_config(splits)
        cfg = with_keys(load_config(args.config, cli.overrides(args)), findings.settings)
    judge_splits(splits, findings)
    judge_classes(cfg, splits, findings, held_to)
    judge_images(cfg, splits, findings)
    judge_doubles(splits, findings)
    findings.command = command(args, splits, findings.settings)
    print_report(splits, findings)
    if args.json:
        write_text(args.json, json.dumps(to_json(splits, findings), indent=1) + "\n")
    if findings.faults:
        print(f"error: {len(findings.faults)} fault(s) would stop or spoil a training, see above", file=sys.stderr)
    return 1 if findings.faults else 0


# --- What there is ---


@dataclass
class SplitReport:
    """The images of one split, and what they are."""

    name: str
    source: str
    paths: list = field(default_factory=list)
    classes: dict = field(default_factory=dict)  # {folder, or number in a list file: images}, empty folders among them
    class_of: list = field(default_factory=list)  # number of the class in `classes` of each path; of folders alone
    loose: int = 0  # images in no class folder
    others: Counter = field(default_factory=Counter)  # by ending, files that are no images
    ignored: Counter = field(default_factory=Counter)  # names of folders that are not read, such as @eaDir
    closed: list = field(default_factory=list)  # folders that cannot be listed
    unreadable: dict = field(default_factory=dict)  # {path: reason}
    sides: Counter = field(default_factory=Counter)  # {shorter side in pixels: images}
    modes: Counter = field(default_factory=Counter)
    misnamed: Counter = field(default_factory=Counter)  # {"PNG called .jpg": images}
    rotated: int = 0  # images that EXIF says are to be turned or mirrored
    dim: int = 0  # 16-bit images that use 12 bits or fewer
    digests: array = field(default_factory=lambda: array("Q"))  # hash of the content of each path, 0 if unreadable
    grey: list = field(default_factory=lambda: [0, 0.0, 0.0])  # grey images, sums of their means and mean squares


def find_splits(cfg):
    """([SplitReport, ...], faults): the splits that data/dataset.py finds, whatever is wrong with their classes."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.data.dataset import Layout

    layout = Layout(cfg)
    root = layout.root
    if layout.shared:
        return divided(split_of_folders("train", layout.shared), cfg)
    splits, faults = [], []
    for name, list_file in layout.lists.items():
        if layout.given not in (None, name):
            continue
        folder = None if list_file else layout.folder(name)
        try:
            if list_file:
                splits.append(split_of_list(root, name, root / list_file, class_list(cfg)[0]))
            elif folder:
                splits.append(split_of_folders(name, folder))
            elif name == "val":
                also = "" if splits else " nor train/ nor class folders"
                raise UserError(f"data folder {root} has no val/, validation/ or test/ folder{also}")
        except UserError as error:
            faults.append(str(error))
    if not splits:
        raise UserError(faults[0])
    return splits, faults


def divided(split, cfg):
    """([train, val], faults): the images of a folder as DATA.VAL_FRACTION divides them."""
    import numpy as np

    from t2t_vit.common.errors import UserError
    from t2t_vit.data.holdout import held_out

    class_of = split.class_of
    try:
        validates = held_out(split.paths, class_of, list(split.classes), split.source, cfg.DATA.VAL_FRACTION, cfg.SEED)
    except UserError as error:
        return [split], [str(error)]
    val = SplitReport("val", split.source, split.paths.where(validates))
    split.paths = split.paths.where(~validates)
    for report, chosen in ((split, ~validates), (val, validates)):
        report.classes = dict(zip(split.classes, np.bincount(class_of[chosen], minlength=len(split.classes)).tolist()))
    return [split, val], []


def split_of_list(root, name, list_file, classes):
    from t2t_vit.data.dataset import read_list

    listed = read_list(root, name, list_file, classes, any_number=True)  # whether there are so many is judged later
    return SplitReport(name, listed.source, listed.paths, dict(Counter(map(int, listed.labels))))


def split_of_folders(name, folder):
    import numpy as np

    from t2t_vit.common.errors import UserError, one_line
    from t2t_vit.data.index import Paths, class_folders, composed, image_files

    split, parts = SplitReport(name, str(folder)), []
    _, folders, names = next(os.walk(folder))
    split.loose = count_others(names, split.others)
    leave_out_ignored(folders, split)
    found = class_folders(folder)
    for class_folder in found:
        try:
            parts.append(Paths.of(image_files(folder / class_folder)))
        except UserError:  # a folder that cannot be listed, which the walk below names
            parts.append(Paths.of([]))
        key = composed(class_folder)
        split.classes[key] = split.classes.get(key, 0) + len(parts[-1])
        walk = os.walk(folder / class_folder, onerror=lambda error: split.closed.append(one_line(error)))
        for _, folders, names in walk:
            leave_out_ignored(folders, split)
            count_others(names, split.others)
    split.paths = Paths.joined(parts)
    number = {key: i for i, key in enumerate(split.classes)}
    numbers = np.array([number[composed(name)] for name in found], int)
    split.class_of = np.repeat(numbers, np.array([len(part) for part in parts], int))
    return split


def leave_out_ignored(folders, split):
    """Remove from the folders of a walk those that are not read, and count them."""
    from t2t_vit.data.index import is_ignored_folder

    split.ignored.update(filter(is_ignored_folder, folders))
    folders[:] = [name for name in folders if not is_ignored_folder(name)]


def unused_folders(cfg, splits):
    """A line for each folder that is named like a split and serves none."""
    from t2t_vit.data.dataset import SPLIT_FOLDERS, Layout, split_folders

    layout = Layout(cfg)
    if layout.given or any(layout.lists.values()):
        return []
    used = [os.path.join(split.source, "") for split in splits]
    folders = [folder for split in SPLIT_FOLDERS for folder in split_folders(layout.root, split)]
    return [
        f"{folder} is not used"
        for folder in folders
        if not any(source.startswith(os.path.join(folder, "")) for source in used)
    ]


def count_others(names, others):
    """Count the files that are no images by ending; returns how many images there are beside them."""
    from t2t_vit.data.index import is_image_name

    rest = [name for name in names if not is_image_name(name)]
    hidden = sum(name.startswith(".") for name in rest)
    others.update({"hidden": hidden} if hidden else {})
    others.update(os.path.splitext(name)[1].lower() or "without ending" for name in rest if name[0] != ".")
    return len(names) - len(rest)


# --- What it looks like ---


def read_images(split, how, jobs):
    """Read all images of a split in `jobs` processes and add to it what they are."""
    from t2t_vit.common.logger import progress_bar
    from t2t_vit.data.looks import scan

    looks = scan(split.paths, how, jobs)
    bar = progress_bar(looks, total=len(split.paths), desc=f"check {split.name}", unit=" images")
    for path, seen in bar:
        split.digests.append(seen.digest)
        if seen.reason:
            split.unreadable[path] = seen.reason
            continue
        split.sides[seen.side] += 1
        split.modes[seen.mode] += 1
        split.misnamed.update([seen.misnamed] if seen.misnamed else [])
        split.rotated += seen.is_rotated
        split.dim += seen.is_dim
        split.grey = [total + value for total, value in zip(split.grey, seen.grey)]


# --- What follows from it ---


@dataclass
class Findings:
    """`faults` would stop or spoil a training, `notes` would not; `settings` {key: value} fit the data."""

    faults: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    command: str = ""


def suggest_share(cfg, findings, held_to):
    """DATA.VAL_FRACTION where there is no validation split that training could use."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.data.dataset import VAL_FRACTION, Layout
    from t2t_vit.data.index import class_folders, image_files

    layout = Layout(cfg)
    if layout.shared or any(layout.lists.values()) or not layout.could_be_shared():
        return
    training = layout.own("train")
    folder = training or layout.root
    try:
        too_small = any(len(image_files(folder / name)) < 2 for name in class_folders(folder))
    except UserError:  # a folder that cannot be listed, which is told of as a fault later
        return
    if training:
        line = (
            f"{training} has no validation folder beside it: DATA.VAL_FRACTION {VAL_FRACTION} validates on a part of it"
        )
    else:
        line = (
            f"{folder} has class folders and no train/ and val/: DATA.VAL_FRACTION {VAL_FRACTION} trains on a part of "
            "them and validates on the rest, and configs/finetune.yaml starts from weights that you have"
        )
    if too_small:
        findings.notes.append(f"{line}, once each class has 2 images")
        return
    (findings.faults if training and "DATA.VAL_FRACTION" in held_to else findings.notes).append(line)
    findings.settings["DATA.VAL_FRACTION"] = VAL_FRACTION


def judge_splits(splits, findings):
    """Splits without class folders or images."""
    from t2t_vit.data.dataset import SPLIT_FOLDERS

    for split in splits:
        findings.faults += split.closed
        if split.loose:
            findings.notes.append(
                f"{split.loose:,} images in {split.source} are in no class folder and not used; "
                f"DATA.{split.name.upper()}_LIST FILE can name their classes"
            )
        if not split.classes:
            findings.faults.append(f"{split.source} has no class folders")
        elif not any(split.classes.values()):
            findings.faults.append(f"the class folders of {split.source} hold no images")
        name = os.path.basename(split.source).lower()
        if name in SPLIT_FOLDERS[split.name] and name not in ("train", "val"):
            findings.notes.append(f"{split.source} is found by itself, no key is needed")
    if all(split.name == "val" for split in splits):
        findings.notes.append("there is no training split: this data serves validation only")


def judge_classes(cfg, splits, findings, held_to):
    """Classes against each other and, as far as the user asked for those keys, against the config's."""
    from t2t_vit.data.dataset import some

    classes, fault = class_list(cfg)
    if fault and fault not in findings.faults and any(split.classes for split in splits):
        findings.faults.append(fault)
    highest = max((label for split in splits for label in split.classes if isinstance(label, int)), default=-1)
    for split in splits:
        name_classes(split, classes)
    shown = [{name for name, number in split.classes.items() if number} for split in splits]
    absent = shown[1] - shown[0] if len(splits) == 2 else set()
    if absent:
        findings.faults.append(f"{len(absent)} class(es) of val have no image in train: {some(sorted(absent))}")
    fits = classes is not None
    for split, names in zip(splits, shown):
        unknown = sorted(split.classes.keys() - set(classes.folders)) if classes else []
        if unknown:
            fits = False
            line = f"{split.source} has {len(unknown)} class(es) that {classes.source} has not: {some(unknown)}"
            if set(unknown) - absent and ("DATA.CLASSES" in held_to or not cfg.DATA.CLASSES):
                findings.faults.append(line)
        without = [name for name in classes.folders if name not in names] if classes and not unknown else []
        if without:
            line = f"{len(without)} of {len(classes)} classes have no image in {split.name}: {some(without)}"
            findings.notes.append(line)
    suggest_classes(cfg, classes if fits else None, highest, findings, held_to)


def class_list(cfg, keys=()):
    """(ClassList of the config with {key: value} changed, or None, and why there is none)."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.config import with_keys
    from t2t_vit.data.dataset import Layout, load_classes

    try:
        cfg = with_keys(cfg, keys)
        return load_classes(cfg, Layout(cfg)), None
    except UserError as error:
        return None, str(error)


def name_classes(split, classes):
    """Give the numbers of a list file the names that the class list has for them."""
    names = dict(enumerate(classes.folders)) if classes else {}
    split.classes = {
        names.get(label, f"label {label}") if isinstance(label, int) else label: number
        for label, number in split.classes.items()
    }


def suggest_classes(cfg, classes, highest, findings, held_to):
    """Settings for the classes there are; `classes` is the config's list if it fits, `highest` the last label."""
    if not classes and cfg.DATA.CLASSES:
        findings.settings["DATA.CLASSES"] = ""
        classes = class_list(cfg, {"DATA.CLASSES": ""})[0]
    elif classes and cfg.MODEL.NUM_CLASSES not in (0, len(classes)) and "MODEL.NUM_CLASSES" in held_to:
        line = f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES} but {classes.source} has {len(classes)} classes"
        findings.faults.append(line)
    numbered = highest >= 0 and (not classes or classes.source == "MODEL.NUM_CLASSES")
    number = highest + 1 if numbered else len(classes or ())
    if number == 1:
        findings.faults.append("all images are of one class; a training needs two or more")
    elif number and cfg.MODEL.NUM_CLASSES not in (0, number):
        findings.settings["MODEL.NUM_CLASSES"] = number
    name = os.path.basename(cfg.DATA.PATH.rstrip("/"))
    if findings.settings and name:  # not the data that the config is for, so not its run folder either
        findings.settings |= {"DATA.NAME": name, "NAME": name}


def judge_images(cfg, splits, findings):
    """Unreadable and grey images."""
    from t2t_vit.data.dataset import most_skipped

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
        # Training holds them against the images of an epoch, which drops the incomplete last step.
        if bad and split.name == "train" and bad <= most_skipped(number // step * step):
            findings.settings["DATA.ON_ERROR"] = "skip"
        elif bad:
            why = "too many to skip" if split.name == "train" else "a validation counts every image"
            findings.notes.append(f"mend or remove the unreadable images of {split.name}: {why}")
    number, mean, squares = (sum(values) for values in zip(*(split.grey for split in splits)))
    if number and number == sum(sum(split.sides.values()) for split in splits) and cfg.DATA.CHANNELS == 3:
        mean, squares = mean / number, squares / number
        std = max(0.001, math.sqrt(max(0.0, squares - mean**2)))
        findings.settings |= {"DATA.CHANNELS": 1, "DATA.MEAN": f"[{mean:.4f}]", "DATA.STD": f"[{std:.4f}]"}


def judge_doubles(splits, findings):
    """Images with the same content, within a split and in both."""
    import numpy as np

    digests = [np.array(split.digests, np.uint64) for split in splits]
    for split, own in zip(splits, digests):
        first = np.unique(own, return_index=True)[1]
        later = np.setdiff1d(np.flatnonzero(own), first)
        if len(later):
            example = np.flatnonzero(own == own[later[0]])[:2]
            pair = " and ".join(split.paths[int(i)] for i in example)
            findings.notes.append(f"{len(later):,} images of {split.name} repeat the content of another one: {pair}")
    if len(splits) == 2:
        train, val = digests
        common = np.flatnonzero(np.isin(val, train) & (val != 0))
        if len(common):
            pair = splits[0].paths[int(np.flatnonzero(train == val[common[0]])[0])], splits[1].paths[int(common[0])]
            line = f"{len(common):,} images of val have the content of an image of train, so that they measure too well"
            findings.notes.append(f"{line}: {' and '.join(pair)}")


def fitting_config(splits):
    median = spread(sum((split.sides for split in splits), Counter()))[1]
    return next(path for side, path in CONFIGS if median >= side)


def command(args, splits, settings):
    """The command line that trains, or validates where there is nothing to train on, to be pasted."""
    tool = "train" if any(split.name == "train" for split in splits) else "val"
    words = ["python", f"tools/{tool}.py", "--config", args.config]
    words += ["--data-path", args.data_path] if args.data_path else []
    pairs = dict(zip(args.opts[::2], args.opts[1::2])) | settings
    words += map(str, itertools.chain(*pairs.items()))
    return " ".join(shlex.quote(word) if word else '""' for word in words)


# --- What is told ---


def spread(counter):
    """(smallest, median, largest) of the values that a Counter counts; zeros if there are none."""
    values = sorted(counter.elements()) or [0]
    return values[0], values[len(values) // 2], values[-1]


def histogram(title, counter):
    """Lines of a text histogram by powers of two."""
    smallest, median, largest = spread(counter)
    yield f"  {title}: {smallest:,} to {largest:,}, median {median:,}"
    bins = Counter()
    for value, number in counter.items():
        bins[value.bit_length()] += number
    for bits in range(smallest.bit_length(), largest.bit_length() + 1):
        bar = "#" * math.ceil(40 * bins[bits] / max(bins.values()))
        yield f"    {2**bits // 2:>6} - {2**bits - 1:<6} {bins[bits]:>9,} {bar}".rstrip()


def print_report(splits, findings):
    for split in splits:
        unreadable = len(split.unreadable)
        show(f"{split.name}: {len(split.paths):,} images in {len(split.classes):,} classes, {unreadable:,} unreadable "
             f"({split.source})")  # fmt: skip
        if split.sides:
            print(*histogram("images per class", Counter(split.classes.values())), sep="\n")
            print(*histogram("shorter side in pixels", split.sides), sep="\n")
        for title, counter in (
            ("modes, by their Pillow names", split.modes),
            ("read all the same", split.misnamed),
            ("no images by their ending", split.others),
            ("folders that are not read", split.ignored),
            ("not of 8 bits, by their Pillow names", deep_modes(split)),
            ("turned or mirrored by EXIF (DATA.EXIF)", Counter(images=split.rotated)),
            ("of 16 bits, of which 12 are used (DATA.GREY_BITS)", Counter(images=split.dim)),
        ):
            if any(counter.values()):
                show(f"  {title}: " + ", ".join(f"{name} {number:,}" for name, number in counter.most_common()))
        for reason in itertools.islice(split.unreadable.values(), SHOWN):
            show(f"  {reason}")
        if unreadable > SHOWN:
            print(f"  and {unreadable - SHOWN:,} more, which --json FILE names")
    for kind, lines in (("fault", findings.faults), ("note", findings.notes)):
        for line in lines:
            show(f"{kind}: {line}")
    if any(split.sides for split in splits):
        print("settings that fit:")
        show(findings.command)


def show(line):
    """Print a line whose names may hold control characters."""
    from t2t_vit.common.errors import printable

    print(printable(line))


def deep_modes(split):
    """The modes that have more than 8 bits for a channel, which are made 8-bit when they are read."""
    return Counter({mode: number for mode, number in split.modes.items() if mode.startswith(("I", "F"))})


def to_json(splits, findings):
    """The whole report; of the images only those that cannot be read are named."""
    left_out = ("name", "paths", "class_of", "grey", "digests")
    reports = {
        split.name: {"files": len(split.paths), **{k: v for k, v in vars(split).items() if k not in left_out}}
        for split in splits
    }
    return {"splits": reports, **vars(findings)}


def parser():
    from t2t_vit.common.runtime import cores

    parser = cli.common_parser("Check a data set before training.", batch_size_key="VAL.BATCH_SIZE")
    parser.add_argument(
        "--jobs", type=int, default=cores(), metavar="N", help="reading processes; default: one per core"
    )
    parser.add_argument(
        "--json", type=cli.json_file, metavar="FILE", help="write the whole report as JSON, complete or not at all"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, parser(), paddle=False)
