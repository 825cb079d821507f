"""Train a model: python tools/train.py [--config configs/X.yaml] [--data-path DIR] [KEY VALUE ...].

A run that was cut goes on when the same command is given again. Several GPUs:
python -m paddle.distributed.launch --gpus 0,1,2,3 [--nnodes 2 --master HOST:PORT] tools/train.py --config ...
"""

import os
import shlex
import sys
from pathlib import Path

from t2t_vit.cli import common_parser, not_empty, run


def main(args, cfg):
    from t2t_vit.common.errors import UserError
    from t2t_vit.config import resolve

    teacher = {"DISTILL.TEACHER", "DISTILL.WEIGHTS"}.intersection(args.opts[::2])
    if teacher and not cfg.DISTILL.TYPE:
        raise UserError(f"{min(teacher)} is given, but DISTILL.TYPE '' listens to no teacher; set hard or soft")
    args.monitor.send(log=str(resolve(cfg.LOG) / f"{cfg.NAME}.log"))
    _train(args, cfg, args.monitor)


def _train(args, cfg, monitor):
    from t2t_vit.common.errors import UserError, one_line
    from t2t_vit.common.logger import log, setup_logging, write_to_file_only
    from t2t_vit.data.layout import above_train
    from t2t_vit.parallel import processes
    from t2t_vit.runs.interruption import InterruptHandler
    from t2t_vit.training.trainer import Stopped

    processes.setup(cfg)
    setup_logging(main=processes.is_main())
    with InterruptHandler(cfg.TRAIN, args.started) as watch:
        trainer = _prepare(args, above_train(cfg), watch, monitor)
        try:
            trainer.fit()
        except Stopped as stopped:
            log.info("%s", stopped)
            log.info("continue with: %s", _this_command())
        except (KeyboardInterrupt, OSError, UserError) as error:
            message = f"{one_line(error)}; {trainer.how_to_continue()}"
            write_to_file_only(f"error: {message}")
            raise UserError(message) from error
        except Exception as error:
            write_to_file_only(f"error: {one_line(error)}; {trainer.how_to_continue()}")
            raise
        processes.barrier()


def _prepare(args, cfg, watch, monitor):
    """Trainer at the point where the run begins or goes on, with its files ready."""
    from t2t_vit.common.files import display_path
    from t2t_vit.common.logger import log, log_to_file
    from t2t_vit.config import accumulation, with_classes, with_keys
    from t2t_vit.data.dataset import load_data
    from t2t_vit.parallel import processes
    from t2t_vit.runs.run_folder import RunFolder
    from t2t_vit.training.resume import (
        check_classes,
        check_same_everywhere,
        check_setting,
        find_state,
        setting,
        with_start_of,
    )
    from t2t_vit.training.trainer import Trainer
    from t2t_vit.weights.download import local_file

    cfg = with_keys(cfg, {"TRAIN.ACCUM_STEPS": accumulation(cfg, processes.world_size())})
    folder = RunFolder(cfg)
    path = state = None
    if processes.is_main():  # the others may run on a machine without these files
        folder.check_place(cfg)
        if folder.folder.exists():
            folder.lock()
        path, state = find_state(args.resume, folder)
        if not state or path.resolve().parent != folder.folder.resolve():
            folder.check_move(_files_read(cfg, path))
    path, state = processes.from_main((path, state))
    classes, splits = load_data(cfg)
    cfg = with_classes(cfg, len(classes))
    now = setting(cfg, splits)
    check_same_everywhere(now)
    trainer = Trainer(cfg, classes, splits, folder, watch, now)
    if state:
        check_classes(classes, path, args.force)
        check_setting(state["setting"], now, path, args.force)
        trainer.resume(path, state)
    elif cfg.MODEL.PRETRAINED:
        trainer.start_from(local_file(cfg.MODEL.PRETRAINED))
    if processes.is_main():
        folder.lock()
        if state:
            folder.continue_from(path, state["sizes"], with_start_of(cfg, state), classes)
            trainer.scalars.open(folder.scalars)
            if trainer.best_epoch and not folder.best.is_file():
                log.warning(
                    "warning: %s is missing; the next better validation writes it again", display_path(folder.best)
                )
        path = folder.log if state else folder.log_until_begun()
        log_to_file(path)
        monitor.send(log=str(path))
    trainer.tell_saved = lambda: monitor.send(hint=trainer.how_to_continue())
    trainer.tell_saved()
    processes.barrier()
    return trainer


def _files_read(cfg, state):
    """Files that a run reads: those of the weights, and the state to go on from if there is one."""
    from t2t_vit.common.files import is_url
    from t2t_vit.config import resolve

    named = [cfg.MODEL.PRETRAINED, cfg.DISTILL.WEIGHTS, cfg.DISTILL.TEACHER if cfg.DISTILL.TYPE else ""]
    return [resolve(name) for name in named if name and not is_url(name)] + ([state] if state else [])


def _this_command():
    """The command line by which this run was started, with --resume auto at its end."""
    command = os.environ.get("T2T_COMMAND")  # set by scripts/train.sh
    if not command:
        words = ["python", *sys.argv]
        launcher = Path(f"/proc/{os.getppid()}/cmdline")
        if os.environ.get("PADDLE_TRAINER_ID") and launcher.is_file():
            words = launcher.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        command = shlex.join(words)
    backend = os.environ.get("PADDLE_DISTRI_BACKEND")
    return f"{f'PADDLE_DISTRI_BACKEND={backend} ' if backend else ''}{command} --resume auto"


def parser():
    parser = common_parser("Train a model.", batch_size_key="TRAIN.BATCH_SIZE")
    parser.add_argument(
        "--resume",
        type=not_empty,
        metavar="auto|none|FILE",
        default="auto",
        help="auto (default): go on from the latest state of the run folder, if it has one; none: start anew and move "
        "an earlier run of this name aside; FILE: go on from a latest.pdparams",
    )
    parser.add_argument(
        "--force", action="store_true", help="go on although settings that matter are not those of the state"
    )
    return parser


if __name__ == "__main__":
    run(main, parser(), processes="checked")
