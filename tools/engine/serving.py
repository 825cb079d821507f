"""Which engine and which exported file a command works with. No paddle: predict.py starts without it."""

import logging
from pathlib import Path

from config import resolve
from engine.metadata import sha256
from engine.predictors import SUFFIXES, engine_of, file_beside_part, open_predictor
from errors import UserError
from files import is_url, shown

log = logging.getLogger("t2t")

_FORMATS = {"inference": "paddle", "onnxruntime": "onnx", "openvino": "openvino"}


def choose_engine(args):
    """The engine of a command line: --engine, else what reads the file that is given.

    Raises UserError if the two do not fit.
    """
    if args.weights_named and (whole := file_beside_part(args.pretrained)):
        raise UserError(f"{args.pretrained} is a part of an exported model: give --pretrained {shown(whole)}")
    found = engine_of(args.pretrained)
    engine = args.engine or found
    named_weights = args.weights_named and found == "paddle"
    if engine != "paddle" and named_weights:
        suffixes = " or ".join(SUFFIXES[engine])
        raise UserError(
            f"--engine {engine} reads a {suffixes} file, not {args.pretrained}: export that first, "
            f"python tools/export.py --pretrained {args.pretrained} --format {_FORMATS[engine]}"
        )
    if engine == "paddle" and found != "paddle":
        raise UserError(f"--engine paddle computes with weights, not with {args.pretrained}: leave --engine out")
    return engine


def open_exported(args, cfg, engine):
    """Predictor of the file that the command line names, else of the run's export; the config that fits it; its path.

    Raises UserError: there is no such file, it is damaged, or a key of the command line contradicts it.
    """
    if args.weights_named:
        if is_url(args.pretrained):
            raise UserError(f"an exported model is read from a file, not from {args.pretrained}: download it first")
        path = Path(args.pretrained)
        path = path if path.is_absolute() else Path.cwd() / path
    else:
        path = _of_the_run(args, cfg, engine)
    predictor = open_predictor(engine, path, device=cfg.DEVICE or "cpu")
    if not args.weights_named:
        _warn_if_stale(args, cfg, predictor.metadata, path)
    return predictor, predictor.metadata.settle(cfg, args.opts[::2], shown(path)), path


def export_folder(cfg):
    """Where the exported files of a run lie."""
    return resolve(cfg.OUTPUT) / cfg.NAME / "export"


def _of_the_run(args, cfg, engine):
    names = [export_folder(cfg) / f"{cfg.NAME}{suffix}" for suffix in SUFFIXES[engine]]
    for path in names:
        if path.is_file():
            return path
    command = f"python tools/export.py{f' --config {args.config}' if args.config else ''} --format {_FORMATS[engine]}"
    raise UserError(f"no {shown(names[0])} for --engine {engine}: `{command}` makes it, or name a file by --pretrained")


def _warn_if_stale(args, cfg, metadata, path):
    """Warn where the run's weights are no longer those that were exported."""
    best = Path(args.pretrained) if args.pretrained else export_folder(cfg).parent / "best.pdparams"
    if metadata.weights and best.is_file() and sha256(best) != metadata.weights:
        log.warning("warning: %s was made from other weights than %s now holds; export again", shown(path), shown(best))
