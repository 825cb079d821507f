"""Write a trained model as a file for an inference engine, and compare it with the model before it is put in place."""

import dataclasses
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
import yaml

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_writable, flush_to_disk, naming, temporary_path
from t2t_vit.data.classes import ClassList
from t2t_vit.deploy.compare import Samples, compare
from t2t_vit.deploy.engines import CHECKSUM, EagerPredictor, checksum, is_paddle_2, open_predictor, require, to_input
from t2t_vit.deploy.fold import fold
from t2t_vit.deploy.metadata import NAMESPACE, Metadata
from t2t_vit.deploy.quantize import quantize
from t2t_vit.parallel.microbatch import inference

PRECISIONS = ("fp32", "bf16", "int8")
ENGINE_OF = {"paddle": "inference", "onnx": "onnxruntime", "openvino": "openvino"}
FORMATS = tuple(ENGINE_OF)
NOT_OFFERED = {
    ("paddle", "bf16"): "Paddle Inference chooses its precision at run time; use --format openvino",
    ("paddle", "int8"): "it would need PaddleSlim; use --format onnx or openvino",
    ("onnx", "bf16"): "onnxruntime has no bfloat16 kernels for CPUs; use --format openvino",
}
LIBRARIES = {
    "paddle": (),
    "onnx": ("onnx", "paddle2onnx", "onnxruntime"),
    "openvino": ("onnx", "paddle2onnx", "openvino"),
}
_PROGRAM = ".pdmodel" if is_paddle_2(paddle) else ".json"
_SUFFIXES = {"paddle": (_PROGRAM, ".pdiparams", ".yml"), "onnx": (".onnx",), "openvino": (".xml", ".bin")}


def check_offered(form, precision):
    """Raise UserError for an impossible pair of format and precision, or if its libraries are missing."""
    if reason := NOT_OFFERED.get((form, precision)):
        raise UserError(f"--format {form} has no --precision {precision}: {reason}")
    if form != "paddle" and is_paddle_2(paddle):
        raise UserError(
            f"--format {form} needs PaddlePaddle 3; this is {paddle.__version__}, which has --format paddle"
        )
    modules = LIBRARIES[form] + (("onnxruntime",) if precision == "int8" else ())
    for module in dict.fromkeys(modules):
        require(module, f"an {form} file" + (f" in {precision}" if precision != "fp32" else ""))


def file_name(name, form, precision):
    """Name of the exported file of a run: lit_data.onnx, lit_data-int8.xml, ..."""
    return f"{name}{'' if precision == 'fp32' else f'-{precision}'}{_SUFFIXES[form][0]}"


def target_of(target, name, form, precision):
    """The file to write: a folder becomes the usual name in it, a link the file that it points to.

    Raises UserError for a wrong suffix.
    """
    target = Path(target)
    target = target / file_name(name, form, precision) if target.is_dir() else target
    target = Path(os.path.realpath(target))
    if target.suffix != _SUFFIXES[form][0]:
        raise UserError(f"{target}: a file of --format {form} must end in {_SUFFIXES[form][0]}")
    return target


def parts_of(path, form):
    """All files of an exported model; `path` is the main one."""
    return [path.with_suffix(suffix) for suffix in _SUFFIXES[form]]


def export_model(model, cfg, target, form, precision="fp32", batch_size=1, metadata=None, samples=None):
    """Write `model` for an inference engine. If it fails, no file is written.

    Args:
        model: `paddle.nn.Layer` of either family, in eval mode.
        cfg: its config.
        target: file, link to a file, or an existing folder, which gets a file of the usual name.
        form: "paddle", "onnx" or "openvino".
        precision: "fp32", "bf16" or "int8".
        batch_size: images per inference; 0 = any number, which is slower.
        metadata: `Metadata`; its precision, batch size and image size are overwritten. Default: numbered classes.
        samples: `Samples`; default: noise, on which only fp32 is checked.

    Returns:
        (path of the main file, the `Comparison` with the largest difference).

    Raises:
        UserError: the format is not offered, a library is missing, or the file does not compute what the model does.
    """
    check_offered(form, precision)
    target = target_of(target, cfg.NAME, form, precision)
    if metadata is None:
        numbers = tuple(str(number) for number in range(model.head.weight.shape[1]))
        metadata = Metadata.of(cfg, ClassList(numbers, numbers, "numbers"), precision)
    metadata = dataclasses.replace(
        metadata, precision=precision, batch_size=batch_size, image_size=list(model.image_size)
    )
    is_noise, samples = samples is None, samples or _noise(metadata)
    _check_space(target, model)
    with _in_place_of(target) as draft:
        _WRITERS[form](model, metadata, draft, samples)
        eager = EagerPredictor(inference(model, cfg), dataclasses.replace(metadata, batch_size=0))
        comparisons = [compare(predictor, eager, samples) for predictor in _predictors(form, draft)]
        if not is_noise or precision == "fp32":
            for comparison in comparisons:
                comparison.check(precision)
    return target, max(comparisons, key=lambda comparison: comparison.difference)


def _predictors(form, path):
    """Predictors of an exported file: with and without oneDNN for Paddle Inference, which computes differently."""
    options = [{"onednn": True}, {"onednn": False}] if form == "paddle" else [{}]
    return [open_predictor(ENGINE_OF[form], path, **option) for option in options]


def _noise(metadata):
    shape = (max(8, metadata.batch_size), *metadata.image_size, metadata.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Samples(images, calibration=images)


@contextmanager
def _in_place_of(target):
    """Yield a path in a temporary folder; on success, each file in the folder replaces the one beside `target`.

    `target` is replaced last. Its checksums detect other files left from an interrupted export.
    """
    check_writable(target)
    with naming(target):
        folder = temporary_path(target)
        folder.mkdir()
        try:
            yield folder / target.name
            for part in sorted(folder.iterdir(), key=lambda part: part.name == target.name):
                flush_to_disk(part)
                os.replace(part, target.with_name(part.name))
            flush_to_disk(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_space(target, model):
    """Raise UserError if the disk is too full for an export: Paddle does not report a failed write."""
    needed = 4 * sum(tensor.size * tensor.element_size() for tensor in model.state_dict().values())
    check_writable(target)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise UserError(f"{target} cannot be written: {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB needed")


# --- Formats ---


def _save_paddle(model, metadata, path):
    """Write program and parameters. Returns {name of a parameter in the files: structured name}."""
    layer = fold(model)
    shape = [metadata.batch_size or None, metadata.channels, *metadata.image_size]
    paddle.jit.save(layer, str(path.with_suffix("")), input_spec=[paddle.static.InputSpec(shape, "float32", "images")])
    named = [*layer.named_parameters(), *layer.named_buffers()]
    return {tensor.name: name for name, tensor in named}


def _write_paddle(model, metadata, path, _):
    _save_paddle(model, metadata, path)
    path.with_suffix(".pdiparams.info").unlink(missing_ok=True)  # PaddlePaddle 2.6 writes it for further training
    files = {part.suffix: checksum(part) for part in sorted(path.parent.iterdir())}
    text = yaml.safe_dump({**dataclasses.asdict(metadata), "files": files}, allow_unicode=True, sort_keys=False)
    path.with_suffix(".yml").write_text(text, encoding="utf-8")


def _onnx_model(model, metadata, folder):
    from t2t_vit.deploy.onnx_graph import to_onnx  # here because it needs onnx

    program = folder / f"program{_PROGRAM}"
    try:
        names = _save_paddle(model, metadata, program)
        return to_onnx(program, program.with_suffix(".pdiparams"), names)
    finally:
        for part in folder.glob("program.*"):
            part.unlink()


def _write_onnx(model, metadata, path, samples):
    onnx = require("onnx", "an onnx file")
    graph = _onnx_model(model, metadata, path.parent)
    if metadata.precision == "int8":
        quantize(graph, path, _calibration_batches(samples.calibration, metadata))
        graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata.to_entries())
    onnx.save(graph, path)


def _calibration_batches(pixels, metadata):
    """Yield float32 batches of the file's batch size; the last one is filled with the first images."""
    size = metadata.batch_size or 1
    count = -(-len(pixels) // size) * size
    pixels = np.resize(pixels, (count, *pixels.shape[1:]))
    for start in range(0, count, size):
        yield to_input(pixels[start : start + size], metadata)


def _write_openvino(model, metadata, path, samples):
    openvino = require("openvino", "an openvino file")
    source = path.with_suffix(".onnx")
    _write_onnx(model, metadata, source, samples)
    graph = openvino.Core().read_model(source)  # convert_model does the same and reports its use
    for name, value in metadata.to_entries().items():
        graph.set_rt_info(value, [NAMESPACE, name])
    # For bf16, float16 weights are precise enough: they are rounded to bfloat16 anyway.
    openvino.save_model(graph, path, compress_to_fp16=metadata.precision == "bf16")
    graph.set_rt_info(checksum(path.with_suffix(".bin")), [NAMESPACE, CHECKSUM])
    openvino.save_model(graph, path, compress_to_fp16=metadata.precision == "bf16")  # the same .bin
    del graph  # it has `source` open
    source.unlink()


_WRITERS = {"paddle": _write_paddle, "onnx": _write_onnx, "openvino": _write_openvino}
