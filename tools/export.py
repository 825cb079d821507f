"""Export a model: python tools/export.py --format paddle|onnx|openvino [--config FILE] [--pretrained FILE]."""

import dataclasses
import signal
import threading

from t2t_vit.cli import common_parser, not_empty, run


def main(args, cfg):
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.files import check_outputs, display_path, sha256
    from t2t_vit.common.logger import log, setup_logging
    from t2t_vit.config import with_classes
    from t2t_vit.deploy.engines import engine_of
    from t2t_vit.deploy.exporter import check_offered, export_model, file_name, parts_of, size_of, target_of
    from t2t_vit.deploy.metadata import Metadata
    from t2t_vit.deploy.predictor import export_folder, when_best
    from t2t_vit.parallel import processes
    from t2t_vit.weights.build import build_trained_model, classes_of

    if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing half-written, as Ctrl-C does
    processes.setup(cfg)
    setup_logging()
    for option in ("images", "calibration"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)} but must be 1 or more")
    if engine_of(args.pretrained) != "paddle":
        raise UserError(
            f"--pretrained {args.pretrained} is an exported model, but an export is made from weights: give the "
            ".pdparams that it was made from"
        )
    check_offered(args.format, args.precision)
    target = args.file or export_folder(cfg) / file_name(cfg.NAME, args.format, args.precision)
    target = target_of(target, cfg.NAME, args.format, args.precision)
    check_outputs(parts_of(target, args.format), args.inputs)
    model, weights = build_trained_model(cfg, args.pretrained)
    log.info("%s with %s%s", cfg.MODEL.NAME, display_path(weights), when_best(weights))
    cfg = with_classes(cfg, model.head.bias.shape[0])
    metadata = Metadata.of(cfg, classes_of(cfg, weights), args.precision, weights=sha256(weights))
    samples, source = read_samples(args, cfg, display_path(weights))
    batch_size = 0 if args.dynamic_batch else cfg.VAL.BATCH_SIZE if batch_size_given(args) else 1
    path, comparison = export_model(model, cfg, target, args.format, args.precision, batch_size, metadata, samples)
    size, batch = size_of(path, args.format) / 1e6, batch_size or "any size"
    log.info("%s: %s, %s, %.1f MB", display_path(path), args.precision, f"batches of {batch}", size)
    tell(comparison, source)


def tell(comparison, source):
    """What the comparison has found."""
    from t2t_vit.common.logger import log

    found = dataclasses.asdict(comparison)
    line = "compared on {count} images of {source}: largest difference {difference:.1e} of the largest logit, "
    line += "top-1 agreement {agreement:.4f}"
    if comparison.accuracy is not None:
        line += ", acc: {accuracy:.4f}, acc of the model itself: {eager_accuracy:.4f}"
    log.info(line.format(source=source, **found))


def batch_size_given(args):
    """Whether the command line says how large a batch is."""
    return args.batch_size or "VAL.BATCH_SIZE" in args.opts[::2]


def read_samples(args, cfg, weights):
    """(`Samples`, where they are from): of the config's validation split, else of the shipped digits, without labels.

    Raises UserError if the data has other classes than `weights`, or has no training images to calibrate int8 on.
    """
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.files import display_path
    from t2t_vit.config import load_config
    from t2t_vit.data.dataset import load_data
    from t2t_vit.deploy.exporter import Samples

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
    digits = load_config("configs/lit_data.yaml")
    _, splits = load_data(digits, ["val"])
    images, _ = read_images(splits["val"], cfg, args.images)
    return Samples(
        images, None, calibration
    ), f"{display_path(splits['val'].source)} (no validation images at {cfg.DATA.PATH})"


def read_images(split, cfg, count):
    """(uint8 (N, S, S, channels), labels (N,)) of N <= count images from all over a split."""
    import numpy as np

    from t2t_vit.data.images import load_image, reading
    from t2t_vit.data.transforms import EvalTransform

    transform = EvalTransform(cfg)
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    images = [transform(load_image(split.paths[index], **reading(cfg))) for index in chosen]
    return np.stack(images), split.labels[chosen]


def parser():
    parser = common_parser(
        "Export a trained model for an inference engine, and compare it with the model.",
        batch_size_key="VAL.BATCH_SIZE",
    )
    parser.set_defaults(opens_run=True)
    parser.add_argument(
        "--format",
        required=True,
        choices=("paddle", "onnx", "openvino"),
        help="paddle: .json, .pdiparams and .yml (Paddle Inference); onnx: .onnx; openvino: .xml and .bin",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        help="default fp32; bf16: openvino; int8 (calibrated on training images): onnx and openvino",
    )
    parser.add_argument(
        "--dynamic-batch",
        action="store_true",
        help="any number of images at a time; default: --batch-size, else one",
    )
    parser.add_argument(
        "--file", type=not_empty, metavar="FILE", help="what to write; default output/NAME/export/NAME[-PRECISION].*"
    )
    parser.add_argument(
        "--calibration", type=int, default=128, metavar="N", help="training images that calibrate int8; default 128"
    )
    parser.add_argument(
        "--images", type=int, default=400, metavar="N", help="validation images to compare on; default 400"
    )
    return parser


if __name__ == "__main__":
    run(main, parser())
