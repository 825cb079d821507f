"""Train on Baidu AI Studio: bash scripts/aistudio.sh [configs/X.yaml] [options of tools/train.py].

Unpacks the mounted ImageNet archives to the local disk, trains on all cards within the platform's time limit, and puts
the best model where the platform keeps it. The same command goes on where a job was cut. `--help` tells the rest.
"""

import argparse
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from t2t_vit.cli import absolute, check_pairs, exit_with, overrides
from t2t_vit.common import wheels
from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path, check_writable, display_path
from t2t_vit.config import ROOT, default_config, find_config, load_config, resolve, to_seconds
from t2t_vit.spellings import take_data_folder, translate
from train import parser as train_parser

DEFAULT_CONFIG = "configs/t2t_vit_7.yaml"
TIME_LIMIT = "71h"  # AI Studio ends a script job after 72 hours
KEPT_FILES = ("best.pdparams", "config.yaml", "classes.txt", "metrics.jsonl", "times.jsonl")
# Archives that belong together, and the AI Studio data sets that have them.
ARCHIVES = {
    ("ILSVRC2012_w.tar",): "79807",
    ("Light_ILSVRC2012_part_0.tar", "Light_ILSVRC2012_part_1.tar"): "114241 and 114746",
    ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"): "",  # as ImageNet itself gives them out
}
_NO_IMAGES = r"(.*[^a-z])?(test|devkit|bbox)[^a-z]"  # not of the splits that are used
_OTHER_ARCHIVE = re.compile(rf"(?!{_NO_IMAGES}).*(imagenet|ilsvrc).*\.(tar|tar\.gz|tgz)", re.IGNORECASE)
_DEPTH = 3  # folders below a mount in which archives are looked for
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Place(NamedTuple):
    """Folders of a kind of machine, each of which a variable of the environment can replace."""

    mounts: str  # where the data sets are mounted, several divided by colons
    data: str  # what is unpacked: on the local disk, not kept
    runs: str  # run folders, to go on from
    best: str  # the best model of each run; "" = stays in the run folder


# As the platform's own templates of a script job and of a notebook name them, and its manual of `aistudio submit job`,
# of which only output/ is kept. A notebook may have that folder too, and keeps it, so a run that was begun in work/
# decides.
SCRIPT_JOB = Path("/root/paddlejob/workspace")
NOTEBOOK = Path("/home/aistudio")
_IN_NOTEBOOK = Place(f"{NOTEBOOK}/data", f"{NOTEBOOK}/data/imagenet", f"{NOTEBOOK}/work/runs", f"{NOTEBOOK}/work/best")
PLACES = {  # the first folder that exists
    SCRIPT_JOB: Place(f"{SCRIPT_JOB}/train_data/datasets", f"{SCRIPT_JOB}/imagenet", f"{SCRIPT_JOB}/output/runs",
                      f"{SCRIPT_JOB}/output/best"),
    NOTEBOOK / "work/runs": _IN_NOTEBOOK,
    NOTEBOOK / "output": _IN_NOTEBOOK._replace(runs=f"{NOTEBOOK}/output/runs", best=f"{NOTEBOOK}/output/best"),
    NOTEBOOK: _IN_NOTEBOOK,
}  # fmt: skip
ELSEWHERE = Place("", str(resolve(default_config().DATA.PATH)), "", "")
VARIABLES = {
    "JOB_MOUNTS": "folders in which the archives are looked for, divided by colons",
    "JOB_ARCHIVES": "the archives themselves, divided by colons",
    "JOB_VAL_LIST": "--val-list of scripts/unpack.sh; default: a val_list.txt beside the archives",
    "JOB_DATA": "folder to unpack to, on a fast disk",
    "JOB_RUNS": "folder of the run folders, if --output names none",
    "JOB_BEST": "folder for the best model of each run",
    "JOB_STARTED": "when the job began, in seconds since 1970 (date +%s); default: when this command did",
}


def main(args):
    started = number("JOB_STARTED", time.time())
    require_nnodes()
    place = here()
    if on_aistudio():
        print(f"AI Studio: runs in {args.output or place.runs}, best models in {place.best}", flush=True)
    own = [] if args.output or not place.runs else ["--output", place.runs]
    args.output = args.output or place.runs
    cfg = load_config(args.config, overrides(args))
    archives = find_archives(place) if cfg.DATA.PATH == default_config().DATA.PATH else []
    gpus = pick_cards(cfg)
    # Named, so that the run ends where PaddlePaddle cannot use the cards.
    own += ["--device", "gpu"] if gpus and not cfg.DEVICE else []
    own += divide_step(args, cfg, gpus)
    kept = Path(place.best, cfg.NAME) if place.best else None
    if kept:
        check_writable(kept / KEPT_FILES[0])
    if archives:
        unpack(archives, place)
        own += ["--data-path", place.data]
    limit = cfg.TRAIN.TIME_LIMIT or TIME_LIMIT
    left = int(to_seconds(limit) - (time.time() - started))
    if left <= 0:
        raise UserError(
            f"nothing is left of the job's {limit} (TRAIN.TIME_LIMIT); the same command in a new job goes on"
        )
    environment = {**os.environ, "T2T_COMMAND": this_command(args)}
    if "," in gpus:
        environment["GPUS"] = gpus
    try:
        return run_script("train", [*args.words, *own, "TRAIN.TIME_LIMIT", f"{left}s"], environment)
    finally:
        if kept:
            keep_best(cfg, kept)


def on_aistudio():
    """The folder of PLACES that this machine has, or None."""
    # Path.is_dir would raise where /root may not be read.
    return next((folder for folder in PLACES if os.path.isdir(folder)), None)


def here():
    """The Place of this machine, with the folders that the environment names."""
    place = PLACES.get(on_aistudio(), ELSEWHERE)
    named = {name: os.environ.get(f"JOB_{name.upper()}") for name in Place._fields}
    return place._replace(**{name: ":".join(map(absolute, value.split(":"))) for name, value in named.items() if value})


def number(variable, default):
    """Value of a variable of the environment that holds a finite number."""
    value = os.environ.get(variable) or default
    try:
        if math.isfinite(float(value)):
            return float(value)
    except ValueError:
        pass
    raise UserError(f"{variable} is {value!r} but must be a number")


def machines():
    """NNODES, the number of machines that train together."""
    count = number("NNODES", 1)
    if count < 1 or count % 1:
        raise UserError(f"NNODES is {os.environ['NNODES']!r} but must be a whole number, 1 or more")
    return int(count)


def require_nnodes():
    """Raise UserError where the platform gave this job several machines and NNODES says nothing of them."""
    # As paddle/distributed/cloud_utils.py reads them (2.6.2 and 3.3.1).
    hosts = [host for host in os.environ.get("PADDLE_TRAINERS", "").split(",") if host]
    count = max(len(hosts), int(number("PADDLE_TRAINERS_NUM", 1)))
    if count > 1 and not os.environ.get("NNODES"):
        master, node = hosts[0] if hosts else "HOST", os.environ.get("PADDLE_TRAINER_ID", "$PADDLE_TRAINER_ID")
        raise UserError(
            f"this job has {count} machines: to train on all of them, give each the command with NNODES={count} "
            f"MASTER={master}:8090 NODE_RANK={node} before it; NNODES=1 trains on each alone"
        )


def this_command(args):
    """The command line of this job, with the variables that it was given."""
    names = ["NNODES", "MASTER", "NODE_RANK", "GPUS", *VARIABLES]
    names.remove("JOB_STARTED")
    given = [f"{name}={shlex.quote(os.environ[name])}" for name in names if os.environ.get(name)]
    script = os.environ.get("T2T_SCRIPT", "scripts/aistudio.sh")
    return " ".join([*given, shlex.join(["bash", script, *args.words])])


# --- Data ---


def unpack(archives, place):
    """Unpack the archives to `place.data`; those that are unpacked take no time."""
    words = [*map(str, archives), "--output", place.data]
    beside = [path.with_name("val_list.txt") for path in archives]
    if val_list := os.environ.get("JOB_VAL_LIST") or next(filter(Path.is_file, beside), None):
        words += ["--val-list", str(val_list)]
    alone = {name: value for name, value in os.environ.items() if name not in ("GPUS", "NNODES")}
    status = run_script("unpack", words, alone)  # in one process
    if status:
        sys.exit(status)  # it has told why


def find_archives(place):
    """Archives of one ImageNet: those of JOB_ARCHIVES, else the first complete group of those that are mounted."""
    if named := os.environ.get("JOB_ARCHIVES"):
        return [Path(path) for path in named.split(":")]
    if not place.mounts:
        raise UserError(
            f"this is no AI Studio ({SCRIPT_JOB} and {NOTEBOOK} are missing): name the folders of the ImageNet "
            "archives in JOB_MOUNTS, the archives in JOB_ARCHIVES, or the folder of unpacked images with --data-path"
        )
    mounted = mounted_files(place)
    incomplete = []
    for group, data_sets in ARCHIVES.items():
        found = [mounted[name] for name in group if name in mounted]
        if len(found) == len(group):
            return found
        if found:
            lacking = ", ".join(name for name in group if name not in mounted)
            where = f" (data sets {data_sets} belong together)" if data_sets else ""
            incomplete.append(f"{lacking} is missing beside {found[0]}{where}")
    if incomplete:
        raise UserError("; ".join(incomplete))
    if others := sorted(path for name, path in mounted.items() if _OTHER_ARCHIVE.fullmatch(name)):
        return others
    raise UserError(
        f"no ImageNet archive (.tar) in {place.mounts.replace(':', ', ')}: mount data set 79807 (ILSVRC2012_w.tar), or "
        "114241 and 114746 (Light_ILSVRC2012), or name archives in JOB_ARCHIVES, or an unpacked folder with --data-path"
    )


def mounted_files(place):
    """{file name: path} of everything in the mounted folders, the unpacked images aside."""
    found = {}
    unpacked = Path(place.data).resolve()
    for mount in map(Path, filter(None, place.mounts.split(":"))):
        for folder, folders, files in os.walk(mount, followlinks=True):
            depth = len(Path(folder).relative_to(mount).parts)
            folders[:] = [n for n in sorted(folders) if depth < _DEPTH and (Path(folder) / n).resolve() != unpacked]
            for name in sorted(files):
                found.setdefault(name, Path(folder) / name)
    return found


# --- Cards and steps ---


def pick_cards(cfg):
    """Numbers of the cards to train on, "0,1,2,3"; "" without any, or where DEVICE names one."""
    named = os.environ.get("GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return "" if named == "-1" else named
    if cfg.DEVICE:
        return ""
    machine = wheels.look()
    if not machine.cards and on_aistudio():
        reason = machine.trouble or "nvidia-smi is missing or lists none"
        raise UserError(f"no GPU here ({reason}): choose an environment with GPUs, or give --device cpu")
    return ",".join(str(number) for number in range(len(machine.cards)))


def recipe_images(path):
    """Images in a step by the "# Hardware: 4 GPUs x 256 images" line of a config, or None."""
    text = find_config(path).read_text(encoding="utf-8")
    stated = re.search(r"^# Hardware: (\d+) GPUs? x (\d+) images", text, flags=re.MULTILINE)
    return int(stated[1]) * int(stated[2]) if stated else None


def divide_step(args, cfg, gpus):
    """KEY VALUE words that make a step on these cards as large as the recipe's; none where the user has decided."""
    cards = max(1, len([card for card in gpus.split(",") if card])) * machines()
    images = recipe_images(args.config)
    keys = {*args.opts[::2], *(["TRAIN.BATCH_SIZE"] if args.batch_size else [])}
    if not images or "TRAIN.ACCUM_STEPS" in keys:
        return []
    share, rest = divmod(images, cards)
    is_named = "TRAIN.BATCH_SIZE" in keys
    # No more at a time than the recipe: that is what fits into the memory of the recipe's cards.
    fitting = [size for size in range(1, cfg.TRAIN.BATCH_SIZE + 1) if share % size == 0]
    batch = cfg.TRAIN.BATCH_SIZE if is_named else max(fitting, default=0)
    if rest or not batch or share % batch:
        raise UserError(
            f"the recipe's {images} images a step cannot be divided among {cards} card(s)"
            + (f" by {batch}" if is_named else "")
            + "; set GPUS or --batch-size to numbers that divide it, or give --batch-size and TRAIN.ACCUM_STEPS"
        )
    passes = share // batch
    print(f"step: the recipe's {images} images: {cards} process(es) x {batch} x {passes} pass(es)", flush=True)
    return ["TRAIN.BATCH_SIZE", str(batch), "TRAIN.ACCUM_STEPS", str(passes)]


# --- Around a training ---


def run_script(name, words, environment=None):
    """Exit status of scripts/NAME.sh. A signal to this process is passed on, so that a training saves and ends."""
    arrived, child = [], None

    def pass_on(number, _frame):
        arrived.append(number)
        if child:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        # In a session of its own: Ctrl-C would reach it twice, from the terminal and from here.
        command = ["bash", str(ROOT / "scripts" / f"{name}.sh"), *words]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        for number in arrived:
            child.send_signal(number)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived and status:
        print(f"stopped by {signal.Signals(arrived[0]).name}; the same command goes on")
    return status if status >= 0 else 128 - status


def keep_best(cfg, kept):
    """Copy the best model of the run, what belongs to it and the log; each file is the old one or the new one."""
    folder, log = resolve(cfg.OUTPUT) / cfg.NAME, resolve(cfg.LOG) / f"{cfg.NAME}.log"
    if not (folder / KEPT_FILES[0]).is_file():
        print(f"no best model yet in {display_path(folder)}: it comes with the first validation")
        return
    for source in [*(folder / name for name in KEPT_FILES), log]:
        if source.is_file():
            with atomic_path(kept / source.name) as temporary:
                shutil.copyfile(source, temporary)
    print(f"best model: {display_path(kept / KEPT_FILES[0])}")


# --- Command ---


def parser():
    parser = train_parser()
    parser.prog = "bash scripts/aistudio.sh"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        f"Train on AI Studio: unpack the mounted ImageNet, train {DEFAULT_CONFIG} (or the config named first) on\n"
        "all cards, copy the best model where it is kept. All options are those of scripts/train.sh."
    )
    described = "\n".join(f"  {name:<13} {what}" for name, what in VARIABLES.items())
    parser.epilog = (
        f"TRAIN.TIME_LIMIT ({TIME_LIMIT}) is that of the whole job, unpacking and all. Variables of the environment:\n"
        f"{described}\n  GPUS          cards, 0,1,2,3; default: all that nvidia-smi lists\n"
        "A new script job or submitted job has an empty output: mount that of the one before as a data set and give\n"
        "--resume FILE, its latest.pdparams."
    )
    return parser


def parse():
    words, command = sys.argv[1:], parser()
    is_config_first = bool(words) and words[0][:1] != "-" and words[0].endswith((".yaml", ".yml"))
    words = translate(["--config", *words] if is_config_first else words, command, "train")
    args = command.parse_intermixed_args(words)
    take_data_folder(args)
    check_pairs(command, args)
    words = words[is_config_first:]  # scripts/train.sh knows it by its place
    args.words = words if args.config else [DEFAULT_CONFIG, *words]
    args.config = args.config or DEFAULT_CONFIG
    return args


if __name__ == "__main__":
    exit_with(parse, main)
