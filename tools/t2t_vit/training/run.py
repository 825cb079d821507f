"""A training run from the command line to its end: check everything, prepare the run folder, train."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.files import display_path, is_url
from t2t_vit.common.logger import log, log_to_file, setup_logging, write_to_file_only
from t2t_vit.config import resolve, with_classes, with_keys, with_open_keys
from t2t_vit.config_values import accumulation
from t2t_vit.data.dataset import load_data
from t2t_vit.data.layout import above_train
from t2t_vit.parallel import processes
from t2t_vit.runs.interruption import InterruptHandler
from t2t_vit.runs.place import check_move, check_place
from t2t_vit.runs.run_folder import RunFolder
from t2t_vit.training.resume import (
    check_classes,
    check_same_everywhere,
    check_setting,
    find_state,
    setting,
    with_model_of_state,
    with_start_of,
)
from t2t_vit.training.train_log import log_summary
from t2t_vit.training.trainer import Stopped, Trainer
from t2t_vit.weights.build import require_model
from t2t_vit.weights.download import local_file
from t2t_vit.weights.model_config import with_model_of


def train(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Train the model of `cfg`, from the state that `args.resume` asks for or from the start.

    Raises UserError or OSError. The message says how to continue the run.
    """
    teacher = {"DISTILL.TEACHER", "DISTILL.WEIGHTS"}.intersection(args.opts[::2])
    if teacher and not cfg.DISTILL.TYPE:
        raise UserError(f"{min(teacher)} is given, but DISTILL.TYPE '' uses no teacher; set DISTILL.TYPE hard or soft")
    processes.setup(cfg)
    setup_logging(main=processes.is_main())
    with InterruptHandler(cfg.TRAIN, args.started) as interrupts:
        trainer = _prepare(args, above_train(cfg), interrupts)
        try:
            log_summary(trainer, args.notes)
            trainer.fit()
        except Stopped as stopped:
            log.info("%s", stopped)
            log.info("continue with: %s", _this_command())
        except (Exception, KeyboardInterrupt) as error:
            _report(error, trainer)
            raise
        processes.barrier()


def _report(error, trainer):
    """Log an error and how to continue. If a user can fix it, raise a UserError with the same message."""
    message = f"{one_line(error)}; {trainer.how_to_continue()}"
    write_to_file_only(f"error: {message}")
    if isinstance(error, (KeyboardInterrupt, OSError, UserError)):
        raise UserError(message) from error


def _prepare(args, cfg, interrupts):
    """Do all checks first, then prepare the run folder. Returns the `Trainer`."""
    cfg = with_keys(cfg, {"TRAIN.ACCUM_STEPS": accumulation(cfg, processes.world_size())})
    run = RunFolder(cfg)
    # The other processes may run on a machine without these files.
    path, state = processes.from_main(_find_state(args, cfg, run) if processes.is_main() else None)
    cfg = _with_model(cfg, state)
    classes, splits = load_data(cfg)
    cfg = with_classes(cfg, len(classes))
    now = setting(cfg, splits)
    check_same_everywhere(now)
    trainer = Trainer(cfg, classes, splits, run, interrupts, now)
    if state:
        check_classes(classes, path, args.force)
        check_setting(state["setting"], now, path, args.force)
        trainer.resume(path, state)
    elif cfg.MODEL.PRETRAINED:
        trainer.start_from(local_file(cfg.MODEL.PRETRAINED))
    processes.barrier()  # here, all checks have passed in all processes
    if processes.is_main():
        _open_folder(trainer, path, state)
        args.monitor.send(log=str(run.log))
    trainer.on_save = lambda: args.monitor.send(hint=trainer.how_to_continue())
    trainer.on_save()
    processes.barrier()
    return trainer


def _with_model(cfg, state):
    """Return the config with the keys that it leaves open as the state has them, or else the weights to start from."""
    if state:
        return with_model_of_state(cfg, state)
    if cfg.MODEL.PRETRAINED:
        return with_model_of(cfg, local_file(cfg.MODEL.PRETRAINED))
    require_model(cfg)
    return with_open_keys(cfg, {})


def _find_state(args, cfg, run):
    """Return (file, state) to resume from, or (None, None). First checks that the run may write to its folder."""
    check_place(run, cfg)
    if run.folder.exists():
        run.lock()  # a new run is locked only after all checks, so that a refused command leaves no files
    path, state = find_state(args.resume, run)
    if not state or path.resolve().parent != run.folder.resolve():
        names = [cfg.MODEL.PRETRAINED, cfg.DISTILL.WEIGHTS, cfg.DISTILL.TEACHER if cfg.DISTILL.TYPE else ""]
        check_move(run, [*(resolve(name) for name in names if name and not is_url(name)), *([path] if state else [])])
    return path, state


def _open_folder(trainer, path, state):
    """Start the run folder, or continue it from the state in `path`. Then start to write the log file."""
    run = trainer.run
    run.lock()
    if state:
        run.continue_from(path, state["sizes"], with_start_of(trainer.cfg, state), trainer.classes)
        if trainer.best_epoch and not run.best.is_file():
            log.warning("warning: %s is missing; the next validation that is better writes it", display_path(run.best))
    else:
        run.start(trainer.cfg, trainer.classes)
    trainer.log.scalars.open(run.scalars)
    log_to_file(run.log)


def _this_command():
    """The command line that started this run, with --resume auto at its end."""
    command = os.environ.get("T2T_COMMAND")  # set by scripts/train.sh
    if not command:
        words = ["python", *sys.argv]
        launcher = Path(f"/proc/{os.getppid()}/cmdline")
        if os.environ.get("PADDLE_TRAINER_ID") and launcher.is_file():
            words = launcher.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        command = shlex.join(words)
    backend = os.environ.get("PADDLE_DISTRI_BACKEND")
    return f"{f'PADDLE_DISTRI_BACKEND={backend} ' if backend else ''}{command} --resume auto"
