"""The command export.py: a trained model as a file for an inference engine, compared with the model on real images."""

import signal
import threading

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_outputs, display_path, sha256
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.config import load_config
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image, reading
from t2t_vit.data.transforms import EvalTransform
from t2t_vit.deploy.compare import Samples
from t2t_vit.deploy.exporter import check_offered, export_model, file_name, parts_of, target_of
from t2t_vit.deploy.metadata import Metadata
from t2t_vit.deploy.open_model import export_folder, open_model


def export(args, cfg):
    """Export the model of a command line and log how much the exported file differs from it."""
    if threading.current_thread() is threading.main_thread():  # Python sets signal handlers only there
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    setup_logging()
    for option in ("images", "calibration"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)} but must be 1 or more")
    check_offered(args.format, args.precision)
    target = args.file or export_folder(cfg) / file_name(cfg.NAME, args.format, args.precision)
    target = target_of(target, cfg.NAME, args.format, args.precision)
    check_outputs(parts_of(target, args.format), args.inputs)
    opened = open_model(args, cfg, weights_only=True)
    log.info("%s", opened)
    cfg = opened.cfg
    metadata = Metadata.of(cfg, opened.classes, args.precision, weights=sha256(opened.path))
    samples, source = read_samples(args, cfg, display_path(opened.path))
    has_batch_size = args.batch_size or "VAL.BATCH_SIZE" in args.opts[::2]
    batch_size = 0 if args.dynamic_batch else cfg.VAL.BATCH_SIZE if has_batch_size else 1
    target, comparison = export_model(
        opened.model, cfg, target, args.format, args.precision, batch_size, metadata, samples
    )
    megabytes = sum(part.stat().st_size for part in parts_of(target, args.format)) / 1e6
    batches = f"batches of {batch_size or 'any size'}"
    log.info("%s: %s, %s, %.1f MB", display_path(target), args.precision, batches, megabytes)
    log.info("compared on %d images of %s: %s", comparison.count, source, comparison)


def read_samples(args, cfg, weights):
    """Images to compare on, from the validation split or else from the digits of the repository, without labels.

    Returns:
        (`Samples`, where they are from).

    Raises:
        UserError: the data set has other classes than `weights`, or no training images to calibrate int8 on.
    """
    calibration = None
    if args.precision == "int8":
        _, splits = load_data(cfg, ["train"], model_file=weights)
        calibration, _ = read_images(splits["train"], cfg, args.calibration)
    try:
        _, splits = load_data(cfg, ["val"], model_file=weights)
        images, labels = read_images(splits["val"], cfg, args.images)
        return Samples(images, labels, calibration), display_path(splits["val"].source)
    except UserError:
        if args.data_path or "DATA.PATH" in args.opts[::2]:
            raise
    _, splits = load_data(load_config("configs/lit_data.yaml"), ["val"])
    images, _ = read_images(splits["val"], cfg, args.images)
    source = f"{display_path(splits['val'].source)} (no validation images at {cfg.DATA.PATH})"
    return Samples(images, None, calibration), source


def read_images(split, cfg, count):
    """(uint8 (N, S, S, channels), labels (N,)) of N <= count images, evenly spread over a split."""
    transform = EvalTransform(cfg)
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    images = [transform(load_image(split.paths[index], **reading(cfg))) for index in chosen]
    return np.stack(images), split.labels[chosen]
