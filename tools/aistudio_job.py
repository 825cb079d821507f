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

from t2t_vit.cli import check_pairs, exit_with, overrides, parse_words
from t2t_vit.common import wheels
from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path, check_writable, display_path
from t2t_vit.config import ROOT, default_config, load_config, resolve
from t2t_vit.config_values import accumulation, to_seconds
from t2t_vit.data.unpack import unpack
from t2t_vit.spellings import take_data_folder
from train import parser as train_parser

DEFAULT_CONFIG = "configs/t2t_vit_7.yaml"
TIME_LIMIT = "71h"  # AI Studio ends a script job after 72 hours
KEPT_FILES = ("best.pdparams", "config.yaml", "classes.txt", "metrics.jsonl", "times.jsonl")
ARCHIVES = (  # each line: the archives of one complete ImageNet
    ("ILSVRC2012_w.tar",),
    ("Light_ILSVRC2012_part_0.tar", "Light_ILSVRC2012_part_1.tar"),
    ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
)
# From the platform's templates of a script job and a notebook, and the manual of `aistudio submit job`, which keeps
# output/ only.
SCRIPT_JOB = "/root/paddlejob/workspace"
NOTEBOOK = "/home/aistudio"
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
    started = number("JOB_STARTED", int(time.time()))
    machines = count_machines()
    folders = folders_here()
    own = [] if args.output or not folders["JOB_RUNS"] else ["--output", folders["JOB_RUNS"]]
    args.output = args.output or folders["JOB_RUNS"]
    if on_aistudio():
        print(f"AI Studio: runs in {args.output}, best models in {folders['JOB_BEST']}")
    cfg = load_config(args.config, overrides(args))
    archives = find_archives(folders["JOB_MOUNTS"]) if cfg.DATA.PATH == default_config().DATA.PATH else []
    gpus = pick_gpus(cfg)
    own += ["--device", "gpu"] if gpus and not cfg.DEVICE else []  # so that it is an error if Paddle cannot use them
    accumulation(cfg, machines * max(1, len(gpus.split(","))))  # reports an impossible batch size before unpacking
    kept = Path(folders["JOB_BEST"], cfg.NAME) if folders["JOB_BEST"] else None
    if kept:
        check_writable(kept / KEPT_FILES[0])
    if archives:
        unpack(archives, folders["JOB_DATA"], val_list(archives))
        own += ["--data-path", folders["JOB_DATA"]]
    limit = cfg.TRAIN.TIME_LIMIT or TIME_LIMIT
    left = int(to_seconds(limit) - (time.time() - started))
    if left <= 0:
        raise UserError(f"the time limit of this job, {limit}, has passed; repeat the command in a new job to continue")
    environment = {**os.environ, "T2T_COMMAND": this_command(args), **({"GPUS": gpus} if "," in gpus else {})}
    try:
        return train([*args.given, *own, "TRAIN.TIME_LIMIT", f"{left}s"], environment)
    finally:
        if kept:
            keep_best(cfg, kept)


def on_aistudio():
    return any(map(os.path.isdir, (SCRIPT_JOB, NOTEBOOK)))


def folders_here():
    """Return {variable: folder} for this machine, "" if it has none. An environment variable overrides the folder."""
    if os.path.isdir(SCRIPT_JOB):
        mounts, data, kept = f"{SCRIPT_JOB}/train_data/datasets", f"{SCRIPT_JOB}/imagenet", f"{SCRIPT_JOB}/output"
    elif os.path.isdir(NOTEBOOK):
        # A notebook may have output/ too. If work/ has earlier runs, this is a notebook.
        is_submitted = os.path.isdir(f"{NOTEBOOK}/output") and not os.path.isdir(f"{NOTEBOOK}/work/runs")
        mounts, data = f"{NOTEBOOK}/data", f"{NOTEBOOK}/data/imagenet"
        kept = f"{NOTEBOOK}/output" if is_submitted else f"{NOTEBOOK}/work"
    else:
        mounts, data, kept = "", str(resolve(default_config().DATA.PATH)), ""
    runs, best = (f"{kept}/runs", f"{kept}/best") if kept else ("", "")
    folders = {"JOB_MOUNTS": mounts, "JOB_DATA": data, "JOB_RUNS": runs, "JOB_BEST": best}
    return {name: os.environ.get(name) or folder for name, folder in folders.items()}


def number(variable, default):
    """Read a whole number from an environment variable."""
    value = os.environ.get(variable) or str(default)
    if not value.isdecimal():
        raise UserError(f"{variable} is {value!r} but must be a whole number")
    return int(value)


def count_machines():
    """Return NNODES. Raises UserError if the platform started several machines but NNODES is not set."""
    # The platform sets it; paddle/distributed/cloud_utils.py reads it too (2.6.2 and 3.3.1).
    hosts = os.environ.get("PADDLE_TRAINERS", "").split(",")
    if len(hosts) > 1 and not os.environ.get("NNODES"):
        raise UserError(
            f"this job has {len(hosts)} machines: to train on all of them, put NNODES={len(hosts)} "
            f"MASTER={hosts[0]}:8090 NODE_RANK={os.environ.get('PADDLE_TRAINER_ID', '$PADDLE_TRAINER_ID')} before the "
            "command on each machine; with NNODES=1, each machine trains separately"
        )
    return max(1, number("NNODES", 1))


def this_command(args):
    """The command line that continues this job."""
    names = ["NNODES", "MASTER", "NODE_RANK", "GPUS", *(name for name in VARIABLES if name != "JOB_STARTED")]
    given = [f"{name}={shlex.quote(os.environ[name])}" for name in names if os.environ.get(name)]
    return " ".join([*given, shlex.join(["bash", os.environ.get("T2T_SCRIPT", "scripts/aistudio.sh"), *args.given])])


def find_archives(mounts):
    """Find the archives of ImageNet: JOB_ARCHIVES if set, else the first complete group in `mounts` (a:b:c)."""
    if named := os.environ.get("JOB_ARCHIVES"):
        return [Path(path) for path in named.split(":")]
    folders = [folder for folder in mounts.split(":") if folder]
    for group in ARCHIVES:
        found = [find_file(name, folders) for name in group]
        if all(found):
            return found
    raise UserError(
        f"no complete ImageNet in {mounts or 'JOB_MOUNTS, which is not set'}: mount data set 79807, or 114241 and "
        "114746, or set JOB_ARCHIVES, or give unpacked images with --data-path"
    )


def find_file(name, folders):
    """Path of the first file of this name up to three levels below the folders, or None."""
    patterns = ["*/" * depth + name for depth in range(4)]
    found = (path for folder in folders for pattern in patterns for path in sorted(Path(folder).glob(pattern)))
    return next(found, None)


def val_list(archives):
    """Return the file with the classes of the validation images, or None if it must be in the archives."""
    beside = [path.with_name("val_list.txt") for path in archives]
    return os.environ.get("JOB_VAL_LIST") or next(filter(Path.is_file, beside), None)


def pick_gpus(cfg):
    """Return the indices of the GPUs to train on, such as "0,1,2,3"; "" if there is no GPU or DEVICE is set."""
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


def train(words, environment):
    """Run scripts/train.sh and return its exit status. Signals are passed on to it, so that it saves its state."""
    sys.stdout.flush()
    arrived, child = [], None

    def pass_on(number, _frame):
        arrived.append(number)
        if child:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, pass_on)
    # Start it in its own session. Otherwise Ctrl-C would reach it twice: from the terminal and from this process.
    command = ["bash", str(ROOT / "scripts/train.sh"), *words]
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    for number in arrived:  # before the child was started
        child.send_signal(number)
    status = child.wait()
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
        "all GPUs, copy the best model to the folder that the platform keeps. Options: those of scripts/train.sh."
    )
    described = "\n".join(f"  {name:<13} {what}" for name, what in VARIABLES.items())
    parser.epilog = (
        f"TRAIN.TIME_LIMIT (default {TIME_LIMIT}) is the limit of the whole job. Environment variables:\n"
        f"{described}\n  GPUS          indices such as 0,1,2,3; default: all that nvidia-smi lists"
    )
    return parser


def parse():
    words, command = sys.argv[1:], parser()
    is_config_first = bool(words) and words[0][:1] != "-" and words[0].endswith((".yaml", ".yml"))
    args = parse_words(["--config", *words] if is_config_first else words, command)
    take_data_folder(args)
    check_pairs(command, args)
    args.given = words if args.config else [DEFAULT_CONFIG, *words]
    args.config = args.config or DEFAULT_CONFIG
    return args


if __name__ == "__main__":
    exit_with(parse, main)
