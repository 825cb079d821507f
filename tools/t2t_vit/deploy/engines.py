"""Inference engines behind one form: float32 images in, float32 logits out. No paddle, nor any engine, until asked for.

predictor = open_predictor("onnxruntime", "output/lit_data/export/lit_data.onnx")
logits = predictor(images)  # (B, C, H, W), normalised by predictor.metadata -> (B, K)
"""

import importlib
import json
import os
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.files import read_text, sha256
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.common.runtime import asked_threads, cores
from t2t_vit.data.transforms import normalized
from t2t_vit.deploy.metadata import NAMESPACE, Metadata

CHECKSUM = "checksum_of_bin"  # in OpenVINO's rt_info
ENGINES = ("paddle", "inference", "onnxruntime", "openvino")
# What each engine reads; paddle itself computes with weights, not with exported models.
SUFFIXES = {"inference": (".json", ".pdmodel"), "onnxruntime": (".onnx",), "openvino": (".xml", ".onnx")}


def require(module, what):
    """Import an optional library. Raises UserError that names it where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name.partition(".")[0]
        raise UserError(f"{what} needs {missing}, which is not installed: pip install {missing}") from None
    except ImportError as error:
        raise UserError(f"{what} needs {module}, which cannot be imported: {one_line(error)}") from error


def is_paddle_2(paddle):
    """Whether this PaddlePaddle writes and reads .pdmodel, not .json."""
    return paddle.__version__.startswith("2.")


def part_of(path, suffix):
    """The part of an exported model with `suffix`: beside its file, of a link beside what it points to."""
    target = Path(os.path.realpath(path)).with_suffix(suffix)
    return target if target.is_file() else path.with_suffix(suffix)


def checksum(path):
    """Digits to know a part of an exported model by."""
    return sha256(path)[:16]


def _check_parts(path, checksums):
    """Raise UserError unless the parts of an exported model, {suffix: checksum}, are those that it was made with."""
    for suffix, expected in checksums.items():
        part = part_of(path, suffix)
        if not part.is_file():
            raise UserError(f"{part} not found, which belongs to {path}; export it again")
        if checksum(part) != expected:
            raise UserError(f"{part} is not the file that was exported with {path}; export it again")


def file_beside_part(path):
    """The file to give instead of a .bin, .pdiparams or .yml of an exported model; None for anything else."""
    suffixes = {".bin": (".xml",), ".pdiparams": SUFFIXES["inference"], ".yml": SUFFIXES["inference"]}
    path = Path(path or ".")
    files = (path.with_suffix(suffix) for suffix in suffixes.get(path.suffix.lower(), ()))
    return next((file for file in files if file.is_file()), None)


def engine_of(path):
    """The engine that a file's name stands for, in small letters or large: "paddle" for what is no exported model."""
    suffix = Path(path).suffix.lower() if path else ""
    return next((engine for engine, suffixes in SUFFIXES.items() if suffix in suffixes), "paddle")


def open_predictor(engine, path, threads=None, device="cpu", onednn=True):
    """Predictor of an exported file.

    Args:
        engine: "inference", "onnxruntime" or "openvino".
        path: .json or .pdmodel (its .pdiparams and .yml beside it), .onnx, or .xml (its .bin beside it).
        threads: that one inference may use; None = OMP_NUM_THREADS if it is set, else as many as the engine thinks fit.
        device: "cpu", or for "inference" "gpu" or "gpu:N".
        onednn: whether "inference" uses oneDNN on a CPU, which is Paddle's default since 3.0.

    Raises:
        UserError: the library is missing, the file too, or it is damaged or of another program.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES.get(engine, ()):
        expected = " or ".join(SUFFIXES.get(engine, ("weights, not an exported model",)))
        case = f" (in small letters, not {path.suffix})" if path.suffix.lower() in SUFFIXES.get(engine, ()) else ""
        raise UserError(f"engine {engine} reads {expected}{case}, not {path}")
    if path.is_dir():
        raise UserError(f"exported model {path} is a folder")
    if not path.is_file():
        raise UserError(f"exported model {path} not found")
    threads = threads or asked_threads() or None
    if device.startswith("gpu") and engine != "inference":
        raise UserError(f"DEVICE is {device}, but engine {engine} runs on the CPU here")
    if engine == "inference":
        return _loaded(path, engine, lambda: PaddleInference(path, threads, device, onednn))
    return _loaded(path, engine, lambda: {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[engine](path, threads))


def to_input(pixels, metadata):
    """uint8 (B, H, W, C) -> float32 (B, C, H, W), normalised."""
    mean, std = (np.array(values, np.float32) for values in (metadata.mean, metadata.std))
    return np.ascontiguousarray(normalized(pixels, mean, std).transpose(0, 3, 1, 2))


class Predictor:
    """Normalised images (B, C, H, W) -> logits (B, K), float32 arrays, at any B >= 1."""

    def __init__(self, metadata):
        self.metadata = metadata

    def __call__(self, images):
        images = np.ascontiguousarray(images, np.float32)
        expected = (self.metadata.channels, *self.metadata.image_size)
        if images.shape[1:] != expected:
            raise UserError(f"the model takes images of shape {expected}, not {images.shape[1:]}")
        size = self.metadata.batch_size
        if not size:
            return self._run(images)
        return np.concatenate([self._run_part(images[i : i + size], size) for i in range(0, len(images), size)])

    def _run_part(self, images, size):
        count = len(images)
        if count < size:
            images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), np.float32)])
        return self._run(images)[:count]

    def _run(self, images):
        """Logits of as many images as the file was made for."""
        raise NotImplementedError


class EagerPredictor(Predictor):
    """A paddle model in eval mode, or what `microbatch.inference` makes of it, computed eagerly."""

    def __init__(self, model, metadata):
        super().__init__(metadata)
        self.model = model

    def _run(self, images):
        import paddle

        with paddle.no_grad():
            return self.model(paddle.to_tensor(images)).astype("float32").numpy()


class PaddleInference(Predictor):
    """`paddle.inference`."""

    def __init__(self, path, threads, device, onednn):
        paddle = require("paddle", "engine inference")
        if path.suffix == ".json" and is_paddle_2(paddle):  # which would crash
            raise UserError(
                f"{path} is of PaddlePaddle 3, this is {paddle.__version__}: export the model with it again"
            )
        inference = paddle.inference
        super().__init__(read_sidecar(path))
        self.path = path
        config = inference.Config(str(path), str(part_of(path, ".pdiparams")))
        if device.startswith("gpu"):
            from t2t_vit.models import tf32  # which imports paddle

            tf32.allow(False)
            config.enable_use_gpu(256, int(device.partition(":")[2] or 0))
        else:
            config.disable_gpu()
            config.enable_mkldnn() if onednn else config.disable_mkldnn()
            config.set_cpu_math_library_num_threads(threads or cores())
        config.disable_glog_info()
        self.predictor = _loaded(path, "paddle", lambda: inference.create_predictor(config))
        self.input = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.output = self.predictor.get_output_handle(self.predictor.get_output_names()[0])

    def _run(self, images):
        self.input.copy_from_cpu(images)
        self.predictor.run()
        logits = self.output.copy_to_cpu()
        _check_width(self.metadata, logits.shape[-1], self.path)  # which Paddle does not tell before
        return logits


class OnnxRuntime(Predictor):
    """onnxruntime on the CPU."""

    def __init__(self, path, threads):
        ort = require("onnxruntime", "engine onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors
        providers = ["CPUExecutionProvider"]
        self.session = _loaded(path, "onnxruntime", lambda: ort.InferenceSession(str(path), options, providers))
        super().__init__(Metadata.from_entries(self.session.get_modelmeta().custom_metadata_map, path))
        self.input = self.session.get_inputs()[0]
        _check_input(self.metadata, self.input.shape, path)
        _check_width(self.metadata, self.session.get_outputs()[0].shape[-1], path)

    def _run(self, images):
        return self.session.run(None, {self.input.name: images})[0]


class OpenVino(Predictor):
    """OpenVINO on the CPU, computing in the precision that the file was made for."""

    def __init__(self, path, threads):
        ov = require("openvino", "engine openvino")
        core = ov.Core()
        if path.suffix == ".onnx":
            parts = (path,)
        else:
            _check_parts(path, _openvino_checksums(path))
            parts = (path, part_of(path, ".bin"))
        model = _loaded(path, "OpenVINO", lambda: core.read_model(*parts))
        super().__init__(Metadata.from_entries(_openvino_entries(model, path), path))
        _check_input(self.metadata, [_size(dim) for dim in model.inputs[0].partial_shape], path)
        _check_width(self.metadata, _size(model.outputs[0].partial_shape[-1]), path)
        # Where the CPU can, OpenVINO would compute in bfloat16 unasked.
        options = {"INFERENCE_PRECISION_HINT": "bf16" if self.metadata.precision == "bf16" else "f32"}
        options |= {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        compiled = _loaded(path, "OpenVINO", lambda: core.compile_model(model, "CPU", options))
        self.request = compiled.create_infer_request()

    def _run(self, images):
        return np.array(self.request.infer({0: images})[0])


def _size(dimension):
    return dimension.get_length() if dimension.is_static else None


def _openvino_checksums(path):
    """{".bin": checksum} of an IR file; {} of one that is damaged or of another program, which others tell."""
    try:
        entry = ElementTree.parse(path).find(f"rt_info/{NAMESPACE}/{CHECKSUM}")
    except ElementTree.ParseError:
        return {}
    return {} if entry is None else {".bin": entry.get("value")}


def _openvino_entries(model, path):
    """Of an IR file its rt_info; of an ONNX file, whose metadata OpenVINO does not keep, what a second look finds."""
    if path.suffix == ".onnx":
        onnx = require("onnx", "engine openvino with an .onnx file")
        return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    if not model.has_rt_info(NAMESPACE):
        return {}
    return dict(model.get_rt_info(NAMESPACE).value)


def read_sidecar(path):
    """`Metadata` of a Paddle inference model, from the .yml beside it."""
    sidecar = part_of(path, ".yml")
    try:
        entries = load_yaml(read_text(sidecar, 2**26), fast=True)
        if not isinstance(entries, dict):
            raise ValueError("no entries")
        _check_parts(path, entries.pop("files"))
        entries = {name: json.dumps(value) for name, value in entries.items()}
    except FileNotFoundError:
        raise UserError(f"{sidecar} not found, which belongs to {path}; export it again") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{sidecar} is damaged ({one_line(error)}); export the model again") from None
    return Metadata.from_entries(entries, path)


def _loaded(path, engine, load):
    """What `load()` returns; whatever the engine raises at a damaged file becomes one line."""
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # each engine has exceptions of its own, which share no other base
        reason = textwrap.shorten(one_line(error), 300, placeholder=" ...")
        raise UserError(f"{path} cannot be read by {engine}: {reason}; export it again") from error


def _check_input(metadata, shape, path):
    """Raise UserError unless the graph takes what the metadata says; sizes that are no numbers are free."""
    expected = [metadata.batch_size or None, metadata.channels, *metadata.image_size]
    found = [size if isinstance(size, int) else None for size in shape]
    if found != expected:
        raise UserError(f"{path} takes input of shape {found}, not {expected} as it says of itself; export it again")


def _check_width(metadata, width, path):
    """Raise UserError unless there is a logit for each class; a width that is no number is free."""
    if isinstance(width, int) and width != len(metadata.classes):
        raise UserError(f"{path} gives {width} logits but names {len(metadata.classes)} classes; export it again")
