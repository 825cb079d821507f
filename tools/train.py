"""Train a model: python tools/train.py [--config configs/X.yaml] [--data-path DIR] [KEY VALUE ...].

Several GPUs: python -m paddle.distributed.launch --gpus 0,1,2,3 tools/train.py --config configs/X.yaml ...
"""

from pathlib import Path

from cli import common_parser, one_line, run


def main(args, cfg):
    from config import resolve
    from data.dataset import load_data
    from engine import parallel
    from engine.logger import log, log_to_file, setup_logging, write_to_file_only
    from engine.run_folder import RunFolder
    from engine.trainer import Trainer
    from errors import UserError
    from files import shown

    parallel.setup(cfg.DEVICE)
    setup_logging(main=parallel.is_main())
    folder = RunFolder(cfg)
    state = _state_to_resume(args.resume, folder)
    if args.resume and not state:
        log.info("nothing to resume in %s: starting anew", shown(folder.folder))
    classes, splits = load_data(cfg)
    trainer = Trainer(cfg, classes, splits, folder)
    if state:
        trainer.resume(state)
    elif cfg.MODEL.PRETRAINED:
        trainer.start_from(resolve(cfg.MODEL.PRETRAINED))
    if parallel.is_main():
        folder.lock()
        if state:
            folder.continue_from(state, trainer.epoch, cfg, classes)
        else:
            folder.move_earlier_log_aside()
        log_to_file(folder.log)
    parallel.barrier()
    try:
        trainer.fit()
    except (KeyboardInterrupt, OSError, UserError) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
        message = f"{reason}; {trainer.how_to_continue()}"
        write_to_file_only(f"error: {message}")
        raise UserError(message) from error


def _state_to_resume(choice, folder):
    """File that `--resume choice` means, or None."""
    if choice == "auto":
        return folder.latest if folder.latest.is_file() else None
    return Path(choice) if choice else None


def parser():
    parser = common_parser("Train a model.", batch_size_key="TRAIN.BATCH_SIZE")
    parser.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="continue from a latest.pdparams; auto: from the run folder's, if it has one",
    )
    return parser


if __name__ == "__main__":
    run(main, parser())
