"""A trained model as a file for an inference engine, compared with the model before it takes its place."""

import dataclasses
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import yaml

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_writable, flush_to_disk, naming, temporary_path
from t2t_vit.data.classes import ClassList
from t2t_vit.deploy.engines import CHECKSUM, EagerPredictor, checksum, is_paddle_2, open_predictor, require, to_input
from t2t_vit.deploy.fold import fold
from t2t_vit.deploy.metadata import NAMESPACE, Metadata
from t2t_vit.training.microbatch import inference

PRECISIONS = ("fp32", "bf16", "int8")
ENGINE_OF = {"paddle": "inference", "onnx": "onnxruntime", "openvino": "openvino"}
FORMATS = tuple(ENGINE_OF)
NOT_OFFERED = {
    ("paddle", "bf16"): "Paddle Inference chooses its precision when it is started, not in the file; --format openvino",
    ("paddle", "int8"): "it would need PaddleSlim's quantisation; --format onnx and openvino have int8",
    ("onnx", "bf16"): "onnxruntime has no bfloat16 kernels for CPUs; --format openvino has bf16",
}
LIBRARIES = {
    "paddle": (),
    "onnx": ("onnx", "paddle2onnx", "onnxruntime"),
    "openvino": ("onnx", "paddle2onnx", "openvino"),
}
_BESIDE = {"paddle": (".pdiparams", ".yml"), "onnx": (), "openvino": (".bin",)}  # the file that bears the name
LARGEST_DIFFERENCE = 1e-4  # of logits, over the largest logit; fp32
LEAST_AGREEMENT = {"fp32": 1.0, "bf16": 0.97, "int8": 0.95}  # share of the images with the same likeliest class
_BATCH = 16  # images that are compared at a time
_PROGRAM = ".pdmodel" if is_paddle_2(paddle) else ".json"


@dataclass(frozen=True)
class Samples:
    """Pictures to compare and calibrate on: uint8 (N, H, W, channels); labels int (N,) or None."""

    images: np.ndarray
    labels: np.ndarray = None
    calibration: np.ndarray = None


@dataclass(frozen=True)
class Comparison:
    """Of an exported model with the one it was made from, over `count` images; shares from 0 to 1."""

    count: int
    difference: float  # largest, of logits, over the largest logit
    agreement: float  # images with the same likeliest class
    accuracy: float  # top-1 of the exported model; None without labels
    eager_accuracy: float

    def check(self, precision):
        """Raise UserError if the two are further apart than `precision` explains."""
        if not np.isfinite(self.difference):
            raise UserError("the exported model gives logits that are not finite; nothing was written")
        if precision == "fp32" and self.difference > LARGEST_DIFFERENCE:
            raise UserError(
                f"the exported model's logits differ by {self.difference:.1e} of the largest from the model's, more "
                f"than {LARGEST_DIFFERENCE:.0e}; nothing was written"
            )
        if self.agreement < LEAST_AGREEMENT[precision]:
            raise UserError(
                f"the exported model gives {self.agreement:.2%} of {self.count} images the model's class, {precision} "
                f"must {LEAST_AGREEMENT[precision]:.0%}; nothing was written"
            )


def check_offered(form, precision):
    """Raise UserError for a pair of format and precision that there is not, or whose libraries are missing."""
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
    """Name of the file of a run: lit_data.onnx, lit_data-int8.xml, ..."""
    suffix = {"paddle": _PROGRAM, "onnx": ".onnx", "openvino": ".xml"}[form]
    return f"{name}{'' if precision == 'fp32' else f'-{precision}'}{suffix}"


def target_of(target, name, form, precision):
    """The file to write: in a folder that of the usual name, of a link what it points to.

    Raises UserError if its name does not end as those of its format do.
    """
    target = Path(target)
    target = target / file_name(name, form, precision) if target.is_dir() else target
    target = Path(os.path.realpath(target))
    expected = Path(file_name("x", form, precision)).suffix
    if target.suffix != expected:
        raise UserError(f"{target}: the name of a file of --format {form} must end in {expected}")
    return target


def parts_of(path, form):
    """The files of an exported model; `path` is the one that bears its name."""
    return [path.with_suffix(suffix) for suffix in (path.suffix, *_BESIDE[form])]


def size_of(path, form):
    """Bytes of an exported model, all its parts."""
    return sum(part.stat().st_size for part in parts_of(path, form))


def export_model(model, cfg, target, form, precision="fp32", batch_size=1, metadata=None, samples=None):
    """Write `model` for an inference engine, all its parts or none.

    Args:
        model: of either family, in eval mode.
        cfg: its config.
        target: file, link to one, or an existing folder that gets one of the usual name.
        form: "paddle", "onnx" or "openvino".
        precision: "fp32", "bf16" or "int8".
        batch_size: images of one inference; 0 = any number, which costs speed.
        metadata: `Metadata`, of which precision, batch size and image size are set here; None = classes are numbers.
        samples: real pictures; None = noise, on which only float32 is held to the model.

    Returns:
        (path of the file, the `Comparison` with the largest difference).

    Raises:
        UserError: the pair is not offered, a library is missing, or the file computes something else than the model.
    """
    check_offered(form, precision)
    target = target_of(target, cfg.NAME, form, precision)
    numbers = tuple(str(number) for number in range(model.head.weight.shape[1]))
    metadata = metadata or Metadata.of(cfg, ClassList(numbers, numbers, "numbers"), precision)
    metadata = dataclasses.replace(
        metadata, precision=precision, batch_size=batch_size, image_size=list(model.image_size)
    )
    is_noise, samples = samples is None, samples or _noise(metadata)
    _check_space(target, model)
    with _all_or_nothing(target) as draft:
        _WRITERS[form](model, metadata, draft, samples)
        eager = EagerPredictor(inference(model, cfg), dataclasses.replace(metadata, batch_size=0))
        comparisons = [compare(predictor, eager, samples) for predictor in _readers(form, draft)]
        if not is_noise or precision == "fp32":
            for comparison in comparisons:
                comparison.check(precision)
    return target, max(comparisons, key=lambda comparison: comparison.difference)


def _readers(form, path):
    """Predictors of an exported file: one for each way in which its engine may compute it."""
    ways = [{"onednn": True}, {"onednn": False}] if form == "paddle" else [{}]
    return [open_predictor(ENGINE_OF[form], path, **way) for way in ways]


def _noise(metadata):
    shape = (max(8, metadata.batch_size), *metadata.image_size, metadata.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Samples(images, calibration=images)


@contextmanager
def _all_or_nothing(target):
    """Yield a path in a folder of its own beside `target`; what was written there in the end takes its place.

    A single file is replaced. Of several, the target is removed first and comes last, so that it is never there with
    the other parts of another model.
    """
    check_writable(target)
    with naming(target):
        folder = temporary_path(target)
        folder.mkdir()
        try:
            yield folder / target.name
            parts = sorted(folder.iterdir(), key=lambda part: part.name == target.name)
            for part in parts:
                flush_to_disk(part)
            if len(parts) > 1:
                target.unlink(missing_ok=True)
            for part in parts:
                os.replace(part, target.with_name(part.name))
            flush_to_disk(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_space(target, model):
    """Raise UserError if the disk has no room for the files of an export: Paddle says nothing when a write fails."""
    needed = 4 * sum(tensor.size * tensor.element_size() for tensor in model.state_dict().values())
    check_writable(target)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise UserError(f"{target} cannot be written: {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB needed")


def compare(predictor, eager, samples):
    """`Comparison` of two predictors over the images of `samples`."""
    metadata, both = predictor.metadata, []
    for start in range(0, len(samples.images), _BATCH):
        images = to_input(samples.images[start : start + _BATCH], metadata)
        both.append((predictor(images), eager(images)))
    logits, expected = (np.concatenate(side).astype(np.float64) for side in zip(*both))
    classes, expected_classes = logits.argmax(axis=1), expected.argmax(axis=1)
    shares = [None, None]
    if samples.labels is not None:
        shares = [float(np.mean(found == samples.labels)) for found in (classes, expected_classes)]
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return Comparison(len(logits), difference, float(np.mean(classes == expected_classes)), *shares)


# --- Formats ---


def _save_paddle(model, metadata, path):
    """Program and parameters; {name of a parameter in them: structured name}."""
    layer = fold(model)
    shape = [metadata.batch_size or None, metadata.channels, *metadata.image_size]
    paddle.jit.save(layer, str(path.with_suffix("")), input_spec=[paddle.static.InputSpec(shape, "float32", "images")])
    named = [*layer.named_parameters(), *layer.named_buffers()]
    return {tensor.name: name for name, tensor in named}


def _write_paddle(model, metadata, path, _):
    _save_paddle(model, metadata, path)
    path.with_suffix(".pdiparams.info").unlink(missing_ok=True)  # of PaddlePaddle 2.6, for training on
    checksums = {part.suffix: checksum(part) for part in sorted(path.parent.iterdir())}
    text = yaml.safe_dump({**dataclasses.asdict(metadata), "files": checksums}, allow_unicode=True, sort_keys=False)
    path.with_suffix(".yml").write_text(text, encoding="utf-8")


def _onnx_model(model, metadata, folder):
    from t2t_vit.deploy.onnx_graph import to_onnx

    program = folder / f"program{_PROGRAM}"
    try:
        names = _save_paddle(model, metadata, program)
        return to_onnx(program, program.with_suffix(".pdiparams"), names)
    finally:
        for part in folder.glob("program.*"):
            part.unlink()


def _write_onnx(model, metadata, path, samples):
    import onnx

    graph = _onnx_model(model, metadata, path.parent)
    if metadata.precision == "int8":
        from t2t_vit.deploy.quantize import quantize

        size = metadata.batch_size or 1
        count = -(-len(samples.calibration) // size) * size  # whole batches: the first pictures again, if need be
        calibration = np.resize(samples.calibration, (count, *samples.calibration.shape[1:]))
        batches = (to_input(calibration[i : i + size], metadata) for i in range(0, count, size))
        quantize(graph, path, batches)
        graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata.to_entries())
    onnx.save(graph, path)


def _write_openvino(model, metadata, path, samples):
    import openvino

    source = path.with_suffix(".onnx")
    _write_onnx(model, metadata, source, samples)
    graph = openvino.Core().read_model(source)  # convert_model does the same and reports its use
    for name, value in metadata.to_entries().items():
        graph.set_rt_info(value, [NAMESPACE, name])
    # The halves that are stored for bf16 are finer than what it computes with.
    openvino.save_model(graph, path, compress_to_fp16=metadata.precision == "bf16")
    graph.set_rt_info(checksum(path.with_suffix(".bin")), [NAMESPACE, CHECKSUM])
    openvino.save_model(graph, path, compress_to_fp16=metadata.precision == "bf16")  # the same .bin
    del graph
    source.unlink()


_WRITERS = {"paddle": _write_paddle, "onnx": _write_onnx, "openvino": _write_openvino}
