"""What a command predicts with, and its answers. No paddle until a model of it is opened: predict.py starts without."""

import json
import logging
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path, is_url, sha256
from t2t_vit.config import load_config, resolve, with_classes
from t2t_vit.data.images import MOST_BYTES, ImageError, load_image, reading
from t2t_vit.data.transforms import EvalTransform
from t2t_vit.deploy.engines import SUFFIXES, EagerPredictor, engine_of, file_beside_part, open_predictor, to_input
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.training.schedule import total_epochs

log = logging.getLogger("t2t")

_FORMATS = {"inference": "paddle", "onnxruntime": "onnx", "openvino": "openvino"}


def choose_engine(args):
    """The engine of a command line: --engine, else what reads the file that is given.

    Raises UserError if the two do not fit.
    """
    if args.weights_named and (whole := file_beside_part(args.pretrained)):
        raise UserError(f"{args.pretrained} is a part of an exported model: give --pretrained {display_path(whole)}")
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


def open_engine(args, cfg, engine):
    """What `engine` predicts with: (predictor, the config that fits it, the model, None of an exported one)."""
    if engine == "paddle":
        return open_weights(cfg, args.pretrained, args.weights_named)
    predictor, cfg, path = open_exported(args, cfg, engine)
    if not args.weights_named:
        log.info("note: %s with %s", cfg.MODEL.NAME, display_path(path))
    return predictor, cfg, None


def open_weights(cfg, chosen, named=True):
    """(predictor of weights, which `build_trained_model` finds, the config that fits it, the model).

    Where the user has not `named` the weights, one line says which they are.
    """
    from t2t_vit.parallel import processes
    from t2t_vit.training.microbatch import inference
    from t2t_vit.weights.build import build_trained_model, classes_of

    processes.setup(cfg)
    model, weights = build_trained_model(cfg, chosen)
    if not named:
        log.info("note: %s with %s%s", cfg.MODEL.NAME, display_path(weights), when_best(weights))
    cfg = with_classes(cfg, model.head.bias.shape[0])
    metadata = Metadata.of(cfg, classes_of(cfg, weights), "fp32", batch_size=0)
    return EagerPredictor(inference(model, cfg), metadata), cfg, model


def when_best(weights):
    """Epoch and accuracy of the best.pdparams of a run, in brackets, from the files beside it; "" if unknown."""
    if weights.name != "best.pdparams":
        return ""
    try:
        cfg = load_config(weights.with_name("config.yaml"))
        lines = weights.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        key = "val_ema_top1" if cfg.VAL.BEST == "ema" and any("val_ema_top1" in row for row in rows) else "val_top1"
        best = max((row for row in rows if row.get(key) is not None), key=lambda row: row[key])
        return f" (weights of epoch {best['epoch']:d} of {total_epochs(cfg.TRAIN)}, val acc {best[key]:.4f})"
    except (UserError, OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError, AttributeError):
        # Not of a run, of an older one, or forged.
        return ""


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
    return predictor, predictor.metadata.settle(cfg, args.opts[::2], display_path(path)), path


def export_folder(cfg):
    """Where the exported files of a run lie."""
    return resolve(cfg.OUTPUT) / cfg.NAME / "export"


def _of_the_run(args, cfg, engine):
    names = [export_folder(cfg) / f"{cfg.NAME}{suffix}" for suffix in SUFFIXES[engine]]
    for path in names:
        if path.is_file():
            return path
    command = f"python tools/export.py{f' --config {args.config}' if args.config else ''} --format {_FORMATS[engine]}"
    raise UserError(
        f"no {display_path(names[0])} for --engine {engine}: `{command}` makes it, or name a file by --pretrained"
    )


def _warn_if_stale(args, cfg, metadata, path):
    """Warn where the run's weights are no longer those that were exported."""
    best = Path(args.pretrained) if args.pretrained else export_folder(cfg).parent / "best.pdparams"
    if metadata.weights and best.is_file() and sha256(best) != metadata.weights:
        log.warning(
            "warning: %s was made from other weights than %s now holds; export again",
            display_path(path),
            display_path(best),
        )


# --- Answers ---


def predict_batch(predictor, paths, cfg, top_k):
    """Predict some images.

    Returns:
        {path: {"class_id", "name", "probability", "top": [the same three for the K likeliest]}}, or
        {path: {"error": reason}} for an image that cannot be read; in the order of `paths`.
    """
    pixels, errors = read_images(paths, cfg)
    answers = classify(predictor, list(pixels.values()), top_k)
    results = {path: {**top[0], "top": top} for path, top in zip(pixels, answers)}
    return {path: results[path] if path in results else {"error": errors[path]} for path in paths}


def read_images(paths, cfg, most_bytes=MOST_BYTES):
    """({path: uint8 (S, S, channels) as the model sees it}, {path: why it cannot be read}).

    most_bytes: limit for each decoded image.
    """
    transform = EvalTransform(cfg)
    pixels, errors = {}, {}
    for path in paths:
        try:
            pixels[path] = transform(load_image(path, **reading(cfg, by_hand=True), most_bytes=most_bytes))
        except ImageError as error:
            errors[path] = str(error)
    return pixels, errors


def classify(predictor, pixels, top_k):
    """The `top_k` likeliest classes, {"class_id", "name", "probability"} each, of images uint8 (S, S, channels)."""
    if not pixels:
        return []
    names = predictor.metadata.classes
    logits = predictor(to_input(np.stack(pixels), predictor.metadata)).astype(np.float64)  # (B, K)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return [
        [
            {"class_id": int(class_id), "name": names[class_id], "probability": round(float(row[class_id]), 6)}
            for class_id in np.argsort(-row, kind="stable")[:top_k]
        ]
        for row in probabilities
    ]
