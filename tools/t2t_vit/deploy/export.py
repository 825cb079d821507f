"""The command export.py: write a trained model as a file for an inference engine.

The file is kept only if its engine gives the same results as the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
import yaml
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, counted
from t2t_vit.common.files import atomic_path, check_outputs, check_writable, display_path, naming, sha256, write_text
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.config import load_config
from t2t_vit.data.classes import ClassList
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image, reading
from t2t_vit.data.transforms import EvalTransform
from t2t_vit.deploy.compare import Comparison, Samples, compare
from t2t_vit.deploy.engines import CHECKSUM, checksum, eager_predictor, is_paddle_2, open_predictor, require, to_input
from t2t_vit.deploy.fold import fold
from t2t_vit.deploy.metadata import NAMESPACE, Metadata
from t2t_vit.deploy.open_model import export_folder, open_model
from t2t_vit.deploy.quantize import quantize_onnx, quantize_openvino
from t2t_vit.models.family import VisionTransformer
from t2t_vit.parallel.microbatch import inference

PRECISIONS = ("fp32", "bf16", "int8")
ENGINE_OF = {"paddle": "inference", "onnx": "onnxruntime", "openvino": "openvino"}
FORMATS = tuple(ENGINE_OF)
NOT_OFFERED = {
    ("paddle", "bf16"): "Paddle Inference chooses its precision at run time; use --format openvino",
    ("paddle", "int8"): "it would need PaddleSlim; use --format onnx or openvino",
    ("onnx", "bf16"): "onnxruntime has no bfloat16 kernels for CPUs; use --format openvino",
}
_PROGRAM = ".pdmodel" if is_paddle_2(paddle) else ".json"
_PREDICT_ONNX = Path(__file__).with_name("predict_onnx.py")
_SUFFIXES = {"paddle": (_PROGRAM, ".pdiparams", ".yml"), "onnx": (".onnx",), "openvino": (".xml", ".bin")}


# --- The command ---


def export(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Export the model of a command line, and log how much the outputs of the exported file differ from the model's."""
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
    assert opened.model is not None
    log.info("%s", opened)
    cfg = opened.cfg
    metadata = Metadata.of(cfg, opened.classes, args.precision, weights=sha256(opened.path))
    samples, source = read_samples(args, cfg, display_path(opened.path))
    has_batch_size = args.batch_size or "VAL.BATCH_SIZE" in args.opts[::2]
    batch_size = 0 if args.dynamic_batch else cfg.VAL.BATCH_SIZE if has_batch_size else 1
    _, comparison = export_model(opened.model, cfg, target, args.format, args.precision, batch_size, metadata, samples)
    megabytes = sum(part.stat().st_size for part in parts_of(target, args.format)) / 1e6
    batches = f"batches of {batch_size or 'any size'}"
    log.info("%s: %s, %s, %.1f MB", display_path(target), args.precision, batches, megabytes)
    log.info("compared on %s of %s: %s", counted(comparison.count, "image"), source, comparison)
    if args.format == "onnx":
        _add_program(target)


def _add_program(target):
    """Write predict_onnx.py beside an .onnx file. Another file of this name is kept."""
    program, code = target.with_name(_PREDICT_ONNX.name), _PREDICT_ONNX.read_text(encoding="utf-8")
    if not os.path.lexists(program):
        write_text(program, code)
    if program.is_file() and program.read_bytes() == code.encode():
        log.info("use it without this repository: python %s %s IMAGE", display_path(program), display_path(target))
    else:
        log.warning("warning: %s is another program and is kept", display_path(program))


def read_samples(args, cfg, weights):
    """Return (`Samples`, their source): validation images if there are any, else the digits in the repository."""
    calibration = None
    if args.precision == "int8":
        _, splits = load_data(cfg, ["train"], model_file=weights)
        calibration = read_images(splits["train"], cfg, args.calibration)
    try:
        _, splits = load_data(cfg, ["val"], model_file=weights)
        return Samples(read_images(splits["val"], cfg, args.images), calibration), display_path(splits["val"].source)
    except UserError:
        if args.data_path or "DATA.PATH" in args.opts[::2]:
            raise
    _, splits = load_data(load_config("configs/lit_data.yaml"), ["val"])
    source = f"{display_path(splits['val'].source)} (no validation images at {cfg.DATA.PATH})"
    return Samples(read_images(splits["val"], cfg, args.images), calibration), source


def read_images(split, cfg, count):
    """Read up to `count` evenly spaced images of a split: uint8 (N, S, S, channels)."""
    transform = EvalTransform(cfg)
    chosen = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    return np.stack([transform(load_image(split.paths[index], **reading(cfg))) for index in chosen])


# --- Any model ---


def check_offered(form: str, precision: str) -> None:
    """Raise UserError if a format does not support a precision, or if its libraries are missing."""
    if reason := NOT_OFFERED.get((form, precision)):
        raise UserError(f"--format {form} does not support --precision {precision}: {reason}")
    if form == "paddle":
        return
    if is_paddle_2(paddle):
        raise UserError(
            f"--format {form} needs PaddlePaddle 3; this is {paddle.__version__}, which supports only --format paddle"
        )
    quantizer = ["nncf"] if (form, precision) == ("openvino", "int8") else []
    for module in ("onnx", "paddle2onnx", ENGINE_OF[form], *quantizer):
        require(module, f"an {form} file in {precision}")


def file_name(name, form, precision):
    """Return the default name of an exported file: lit_data.onnx, lit_data-int8.xml, ..."""
    return f"{name}{'' if precision == 'fp32' else f'-{precision}'}{_SUFFIXES[form][0]}"


def target_of(target, name, form, precision):
    """Return the file to write. In a folder, it gets the default name. A link is resolved."""
    target = Path(target)
    target = target / file_name(name, form, precision) if target.is_dir() else target
    target = Path(os.path.realpath(target))
    if target.suffix != _SUFFIXES[form][0]:
        raise UserError(f"{target}: a file of --format {form} must end in {_SUFFIXES[form][0]}")
    return target


def parts_of(path, form):
    """List all files of an exported model, given its main file `path`."""
    return [path.with_suffix(suffix) for suffix in _SUFFIXES[form]]


def export_model(
    model: VisionTransformer,
    cfg: CfgNode,
    target: str | Path,
    form: str,
    precision: str = "fp32",
    batch_size: int = 1,
    metadata: Metadata | None = None,
    samples: Samples | None = None,
) -> tuple[Path, Comparison]:
    """Write `model` as a file for an inference engine. After a failure, no file is left.

    Args:
        model: `paddle.nn.Layer` of either family, in eval mode.
        cfg: its config.
        target: file, link to a file, or an existing folder, in which the file gets the default name.
        form: "paddle", "onnx" or "openvino".
        precision: "fp32", "bf16" or "int8".
        batch_size: images per inference; 0 = any number, which is slower.
        metadata: `Metadata`; precision, batch size and image size are overwritten. By default, classes are numbered.
        samples: `Samples`. The default is noise, on which only fp32 is checked.

    Returns:
        (path of the main file, the `Comparison` with the largest difference).

    Raises:
        UserError: the format is not supported, a library is missing, or the results of the file differ too much.
    """
    check_offered(form, precision)
    path = target_of(target, cfg.NAME, form, precision)
    if metadata is None:
        numbers = tuple(str(number) for number in range(model.head.weight.shape[1]))
        metadata = Metadata.of(cfg, ClassList(numbers, numbers, "numbers"), precision)
    metadata = dataclasses.replace(
        metadata, precision=precision, batch_size=batch_size, image_size=list(model.image_size)
    )
    is_noise, samples = samples is None, samples or _noise(metadata)
    with _in_place_of(path) as draft:
        _WRITERS[form](model, metadata, draft, samples)
        eager = eager_predictor(inference(model, cfg), dataclasses.replace(metadata, batch_size=0))
        comparisons = [compare(predictor, eager, samples.images) for predictor in _predictors(form, draft)]
        if not is_noise or precision == "fp32":
            for comparison in comparisons:
                comparison.check(precision)
    return path, max(comparisons, key=lambda comparison: comparison.difference)


def _predictors(form, path):
    """Open an exported file: with oneDNN and without it for Paddle Inference (the results differ), else once."""
    choices = (True, False) if form == "paddle" else (True,)
    return [open_predictor(ENGINE_OF[form], path, onednn=onednn) for onednn in choices]


def _noise(metadata):
    shape = (max(8, metadata.batch_size), *metadata.image_size, metadata.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Samples(images, images)


@contextmanager
def _in_place_of(target):
    """Yield a path in a temporary folder. On success, move all files of that folder to the folder of `target`."""
    check_writable(target)
    with naming(target), tempfile.TemporaryDirectory(prefix=".export.", dir=target.parent) as folder:
        yield Path(folder) / target.name
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.name == target.name):  # the main file last
            with atomic_path(target.with_name(part.name)) as temporary:
                os.replace(part, temporary)


# --- Formats ---


def _save_paddle(model, metadata, path):
    """Write the program and the parameters. Returns {parameter name in the files: structured name}."""
    layer = fold(model)
    shape = [metadata.batch_size or None, metadata.channels, *metadata.image_size]
    paddle.jit.save(layer, str(path.with_suffix("")), input_spec=[paddle.static.InputSpec(shape, "float32", "images")])
    named = [*layer.named_parameters(), *layer.named_buffers()]
    return {tensor.name: name for name, tensor in named}


def _write_paddle(model, metadata, path, _):
    _save_paddle(model, metadata, path)
    path.with_suffix(".pdiparams.info").unlink(missing_ok=True)  # PaddlePaddle 2.6 writes it for further training
    files = {part.suffix: checksum(part) for part in (path, path.with_suffix(".pdiparams"))}
    text = yaml.safe_dump({**dataclasses.asdict(metadata), "files": files}, allow_unicode=True, sort_keys=False)
    path.with_suffix(".yml").write_text(text, encoding="utf-8")


def _onnx_graph(model, metadata, folder):
    """Return the model as an onnx.ModelProto in float32. Needs a folder for temporary files."""
    from t2t_vit.deploy.onnx_graph import to_onnx  # needs onnx, which is optional

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        program = Path(temporary) / f"program{_PROGRAM}"
        names = _save_paddle(model, metadata, program)
        return to_onnx(program, program.with_suffix(".pdiparams"), names)


def _write_onnx(model, metadata, path, samples):
    import onnx  # optional

    graph = _onnx_graph(model, metadata, path.parent)
    if metadata.precision == "int8":
        quantize_onnx(graph, path, _calibration_batches(samples.calibration, metadata))
        graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata.to_entries())
    onnx.save(graph, path)


def _calibration_batches(pixels, metadata):
    """Yield float32 batches of the file's batch size. The last batch is filled up with the first images."""
    size = metadata.batch_size or 1
    count = -(-len(pixels) // size) * size
    pixels = np.resize(pixels, (count, *pixels.shape[1:]))
    for start in range(0, count, size):
        yield to_input(pixels[start : start + size], metadata)


def _write_openvino(model, metadata, path, samples):
    import openvino  # optional

    content = _onnx_graph(model, metadata, path.parent).SerializeToString()
    graph = openvino.Core().read_model(content)  # convert_model does the same, but sends telemetry
    if metadata.precision == "int8":
        graph = quantize_openvino(graph, _calibration_batches(samples.calibration, metadata))
    for name, value in metadata.to_entries().items():
        graph.set_rt_info(value, [NAMESPACE, name])
    # For bf16, float16 weights are enough, because they are rounded to bfloat16 anyway.
    openvino.save_model(graph, path, compress_to_fp16=metadata.precision == "bf16")
    graph.set_rt_info(checksum(path.with_suffix(".bin")), [NAMESPACE, CHECKSUM])
    openvino.save_model(graph, path, compress_to_fp16=metadata.precision == "bf16")  # the same .bin


_WRITERS = {"paddle": _write_paddle, "onnx": _write_onnx, "openvino": _write_openvino}
