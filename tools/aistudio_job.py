"""Train on Baidu AI Studio: bash scripts/aistudio.sh [configs/X.yaml] [options of tools/train.py].

Unpacks the mounted ImageNet archives to the local disk, trains on all GPUs within the platform's time limit, and copies
the best model to where the platform keeps it. The same command continues an interrupted job.
"""

import argparse
import os
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
from t2t_vit.config import ROOT, accumulation, default_config, load_config, resolve, with_keys
from t2t_vit.config_values import to_seconds
from t2t_vit.spellings import take_data_folder, translate
from train import parser as train_parser

DEFAULT_CONFIG = "configs/t2t_vit_7.yaml"
TIME_LIMIT = "71h"  # AI Studio ends a script job after 72 hours
KEPT_FILES = ("best.pdparams", "config.yaml", "classes.txt", "metrics.jsonl", "times.jsonl")
# Archives that belong together: the AI Studio data sets that hold them.
ARCHIVES = {
    ("ILSVRC2012_w.tar",): "79807",
    ("Light_ILSVRC2012_part_0.tar", "Light_ILSVRC2012_part_1.tar"): "114241 and 114746",
    ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"): "none: the archives of image-net.org",
}
_DEPTH = 3  # levels of folders below a mount that are searched for archives
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Place(NamedTuple):
    """Folders on one kind of machine."""

    mounts: str  # mounted data sets, separated by colons
    data: str  # unpacked images: on the local disk, not kept
    runs: str  # run folders
    best: str  # best model of each run; "" = not copied


# From the platform's templates of a script job and a notebook, and the manual of `aistudio submit job`, which keeps
# output/ only. A notebook may have output/ too, so an earlier run in work/ is looked for first.
SCRIPT_JOB = Path("/root/paddlejob/workspace")
NOTEBOOK = Path("/home/aistudio")
_IN_NOTEBOOK = Place(f"{NOTEBOOK}/data", f"{NOTEBOOK}/data/imagenet", f"{NOTEBOOK}/work/runs", f"{NOTEBOOK}/work/best")
PLACES = {  # the first folder that exists decides
    SCRIPT_JOB: Place(f"{SCRIPT_JOB}/train_data/datasets", f"{SCRIPT_JOB}/imagenet", f"{SCRIPT_JOB}/output/runs",
                      f"{SCRIPT_JOB}/output/best"),
    NOTEBOOK / "work/runs": _IN_NOTEBOOK,
    NOTEBOOK / "output": _IN_NOTEBOOK._replace(runs=f"{NOTEBOOK}/output/runs", best=f"{NOTEBOOK}/output/best"),
    NOTEBOOK: _IN_NOTEBOOK,
}  # fmt: skip
ELSEWHERE = Place("", str(resolve(default_config().DATA.PATH)), "", "")
VARIABLES = {
    "JOB_MOUNTS": "folders that are searched for the archives, separated by colons",
    "JOB_ARCHIVES": "the archives themselves, separated by colons",
    "JOB_VAL_LIST": "--val-list of scripts/unpack.sh; default: val_list.txt beside the archives",
    "JOB_DATA": "folder for the unpacked images, on a fast disk",
    "JOB_RUNS": "folder of the run folders, if --output is not given",
    "JOB_BEST": "folder for the best model of each run",
    "JOB_STARTED": "start of the job in seconds since 1970 (date +%s); default: start of this command",
}


def main(args):
    started = number("JOB_STARTED", time.time())
    machines = count_machines()
    place = here()
    if on_aistudio():
        print(f"AI Studio: runs in {args.output or place.runs}, best models in {place.best}", flush=True)
    own = [] if args.output or not place.runs else ["--output", place.runs]
    args.output = args.output or place.runs
    cfg = load_config(args.config, overrides(args))
    archives = find_archives(place) if cfg.DATA.PATH == default_config().DATA.PATH else []
    gpus = pick_gpus(cfg)
    own += ["--device", "gpu"] if gpus and not cfg.DEVICE else []  # an error if Paddle cannot use them
    own += fitting_batch(args, cfg, machines * max(1, len(gpus.split(","))))
    kept = Path(place.best, cfg.NAME) if place.best else None
    if kept:
        check_writable(kept / KEPT_FILES[0])
    if archives:
        unpack(archives, place)
        own += ["--data-path", place.data]
    limit = cfg.TRAIN.TIME_LIMIT or TIME_LIMIT
    left = int(to_seconds(limit) - (time.time() - started))
    if left <= 0:
        raise UserError(f"the time of this job, TRAIN.TIME_LIMIT {limit}, is over; continue with the same command")
    environment = {**os.environ, "T2T_COMMAND": this_command(args), **({"GPUS": gpus} if "," in gpus else {})}
    try:
        return run_script("train", [*args.words, *own, "TRAIN.TIME_LIMIT", f"{left}s"], environment)
    finally:
        if kept:
            keep_best(cfg, kept)


def on_aistudio():
    """The folder of PLACES that this machine has, or None."""
    return next((folder for folder in PLACES if os.path.isdir(folder)), None)  # Path.is_dir raises if /root is private


def here():
    """The Place of this machine, with the folders that the environment names."""
    place = PLACES.get(on_aistudio(), ELSEWHERE)
    named = {name: os.environ.get(f"JOB_{name.upper()}") for name in Place._fields}
    return place._replace(
        **{name: ":".join(map(absolute, filter(None, value.split(":")))) for name, value in named.items() if value}
    )


def number(variable, default):
    """A number from the environment."""
    value = os.environ.get(variable) or default
    try:
        return float(int(float(value)))  # int refuses nan and inf
    except (ValueError, OverflowError):
        raise UserError(f"{variable} is {value!r} but must be a number") from None


def count_machines():
    """NNODES. Raises UserError if the platform gave this job several machines and NNODES is not set."""
    # The variables that paddle/distributed/cloud_utils.py reads (2.6.2 and 3.3.1).
    hosts = [host for host in os.environ.get("PADDLE_TRAINERS", "").split(",") if host]
    given = max(len(hosts), int(number("PADDLE_TRAINERS_NUM", 1)))
    if given > 1 and not os.environ.get("NNODES"):
        master, rank = hosts[0] if hosts else "HOST", os.environ.get("PADDLE_TRAINER_ID", "$PADDLE_TRAINER_ID")
        raise UserError(
            f"this job has {given} machines: to train on all, run the command on each with NNODES={given} "
            f"MASTER={master}:8090 NODE_RANK={rank} before it; with NNODES=1 each trains alone"
        )
    return max(1, int(number("NNODES", 1)))


def this_command(args):
    """The command line that continues this job."""
    names = ["NNODES", "MASTER", "NODE_RANK", "GPUS", *(name for name in VARIABLES if name != "JOB_STARTED")]
    given = [f"{name}={shlex.quote(os.environ[name])}" for name in names if os.environ.get(name)]
    return " ".join([*given, shlex.join(["bash", os.environ.get("T2T_SCRIPT", "scripts/aistudio.sh"), *args.words])])


def find_archives(place):
    """Archives of one ImageNet: those of JOB_ARCHIVES, else the first complete group in the mounts."""
    if named := os.environ.get("JOB_ARCHIVES"):
        return [Path(path) for path in named.split(":")]
    if not place.mounts:
        raise UserError(
            f"this is not AI Studio ({SCRIPT_JOB} and {NOTEBOOK} do not exist): set JOB_MOUNTS to the folders of the "
            "ImageNet archives or JOB_ARCHIVES to the archives, or give unpacked images with --data-path"
        )
    for group, data_sets in ARCHIVES.items():
        found = [find_file(name, place.mounts.split(":")) for name in group]
        if all(found):
            return found
        if any(found):
            missing = [name for name, path in zip(group, found) if not path]
            raise UserError(f"{', '.join(missing)} missing in {place.mounts}; AI Studio data sets: {data_sets}")
    raise UserError(
        f"no ImageNet archive in {place.mounts.replace(':', ', ')}: mount data set 79807, or 114241 and 114746, or set "
        "JOB_ARCHIVES, or give unpacked images with --data-path"
    )


def find_file(name, folders):
    """Path of the first file of this name up to _DEPTH levels below the folders, or None."""
    patterns = ["*/" * depth + name for depth in range(_DEPTH + 1)]
    found = (path for folder in folders for pattern in patterns for path in sorted(Path(folder).glob(pattern)))
    return next(found, None)


def unpack(archives, place):
    """Unpack the archives to `place.data`, or exit. Archives that were unpacked before take no time."""
    words = [*map(str, archives), "--output", place.data]
    beside = [path.with_name("val_list.txt") for path in archives]
    if val_list := os.environ.get("JOB_VAL_LIST") or next(filter(Path.is_file, beside), None):
        words += ["--val-list", str(val_list)]
    alone = {name: value for name, value in os.environ.items() if name not in ("GPUS", "NNODES")}
    if status := run_script("unpack", words, alone):
        sys.exit(status)


def pick_gpus(cfg):
    """Indices of the GPUs to train on, "0,1,2,3"; "" without a GPU or if DEVICE is set."""
    named = os.environ.get("GPUS") or os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return "" if named == "-1" else named
    if cfg.DEVICE:
        return ""
    machine = wheels.look()
    if not machine.cards and on_aistudio():
        reason = machine.trouble or "nvidia-smi is missing or lists none"
        raise UserError(f"no GPU here ({reason}): choose an environment with GPUs, or give --device cpu")
    return ",".join(str(index) for index in range(len(machine.cards)))


def fitting_batch(args, cfg, processes):
    """KEY VALUE words for the largest batch up to BATCH_SIZE that fits GLOBAL_BATCH, unless the user has chosen one.

    Raises UserError if there is none, before anything is unpacked.
    """
    is_given = args.batch_size or "TRAIN.BATCH_SIZE" in args.opts[::2]
    sizes = [] if is_given else range(cfg.TRAIN.BATCH_SIZE, 0, -1)
    batch = next((size for size in sizes if cfg.TRAIN.GLOBAL_BATCH % (size * processes) == 0), cfg.TRAIN.BATCH_SIZE)
    accumulation(with_keys(cfg, {"TRAIN.BATCH_SIZE": batch}), processes)
    return ["TRAIN.BATCH_SIZE", str(batch)] if batch != cfg.TRAIN.BATCH_SIZE else []


def run_script(name, words, environment):
    """Exit status of scripts/NAME.sh. Signals to this process are passed on, so that a training saves its state."""
    arrived, child = [], None

    def pass_on(number, _frame):
        arrived.append(number)
        if child:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        # In its own session, because Ctrl-C would reach it twice: from the terminal and from here.
        command = ["bash", str(ROOT / "scripts" / f"{name}.sh"), *words]
        child = subprocess.Popen(command, env=environment, start_new_session=True)
        for number in arrived:  # before there was a child
            child.send_signal(number)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def keep_best(cfg, kept):
    """Copy the best model of the run with its config, classes, metrics and log."""
    folder, log = resolve(cfg.OUTPUT) / cfg.NAME, resolve(cfg.LOG) / f"{cfg.NAME}.log"
    if not (folder / KEPT_FILES[0]).is_file():
        print(f"no best model yet in {display_path(folder)}; the first validation writes it")
        return
    for source in [*(folder / name for name in KEPT_FILES), log]:
        if source.is_file():
            with atomic_path(kept / source.name) as temporary:
                shutil.copyfile(source, temporary)
    print(f"best model: {display_path(kept / KEPT_FILES[0])}")


def parser():
    parser = train_parser()
    parser.prog = "bash scripts/aistudio.sh"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        f"Train on AI Studio: unpack the mounted ImageNet, train {DEFAULT_CONFIG} (or the config named first) on\n"
        "all GPUs, copy the best model to the folder that is kept. The options are those of scripts/train.sh."
    )
    described = "\n".join(f"  {name:<13} {what}" for name, what in VARIABLES.items())
    parser.epilog = (
        f"TRAIN.TIME_LIMIT (default {TIME_LIMIT}) is the limit of the whole job. Environment variables:\n"
        f"{described}\n  GPUS          indices such as 0,1,2,3; default: all that nvidia-smi lists\n"
        "A new script job or submitted job has an empty output folder: mount the output of the earlier job as a data\n"
        "set and give --resume FILE, its latest.pdparams."
    )
    return parser


def parse():
    words, command = sys.argv[1:], parser()
    is_config_first = bool(words) and words[0][:1] != "-" and words[0].endswith((".yaml", ".yml"))
    words = translate(["--config", *words] if is_config_first else words, command)
    args = command.parse_intermixed_args(words)
    take_data_folder(args)
    check_pairs(command, args)
    words = words[is_config_first:]  # scripts/train.sh takes the config as its first word too
    args.words = words if args.config else [DEFAULT_CONFIG, *words]
    args.config = args.config or DEFAULT_CONFIG
    return args


if __name__ == "__main__":
    exit_with(parse, main)
