"""Inference engines with one interface: float32 images in, float32 logits out. Engines and Paddle are imported lazily.

predictor = open_predictor("onnxruntime", "output/lit_data/export/lit_data.onnx")
logits = predictor(images)  # (B, C, H, W), normalised by predictor.metadata -> (B, K)
"""

import importlib
import os
import textwrap
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.files import read_text, sha256
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.common.runtime import asked_threads, cores
from t2t_vit.data.transforms import normalized
from t2t_vit.deploy.metadata import NAMESPACE, Metadata

ENGINES = ("paddle", "inference", "onnxruntime", "openvino")
# Files that each engine reads; "paddle" computes with weights.
SUFFIXES = {"inference": (".json", ".pdmodel"), "onnxruntime": (".onnx",), "openvino": (".xml", ".onnx")}
CHECKSUM = "checksum_of_bin"  # in OpenVINO's rt_info


def require(module, what):
    """Import an optional library. Raises UserError that names it if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name.partition(".")[0]
        raise UserError(f"{what} needs {missing}, which is not installed: pip install {missing}") from None
    except ImportError as error:
        raise UserError(f"{what} needs {module}, which cannot be imported: {one_line(error)}") from error


def is_paddle_2(paddle):
    """Whether this PaddlePaddle writes and reads .pdmodel instead of .json."""
    return paddle.__version__.startswith("2.")


def part_of(path, suffix):
    """Another file of an exported model: beside `path`, or beside the file that a link points to."""
    target = Path(os.path.realpath(path)).with_suffix(suffix)
    part = target if target.is_file() else path.with_suffix(suffix)
    if not part.is_file():
        raise UserError(f"{path} needs {part}, which does not exist; export it again")
    return part


def checksum(path):
    """What an exported model stores about its other files."""
    return sha256(path)[:16]


def check_part(path, suffix, expected):
    """Raise UserError if the file with this suffix beside `path` is not from the same export."""
    part = part_of(path, suffix)
    if checksum(part) != expected:
        raise UserError(f"{part} is not the file that was exported with {path}; export it again")


def file_beside_part(path):
    """The main file of an exported model, given its .bin, .pdiparams or .yml; None for any other path."""
    suffixes = {".bin": (".xml",), ".pdiparams": SUFFIXES["inference"], ".yml": SUFFIXES["inference"]}
    path = Path(path or ".")
    files = (path.with_suffix(suffix) for suffix in suffixes.get(path.suffix.lower(), ()))
    return next((file for file in files if file.is_file()), None)


def engine_of(path):
    """The first engine that reads a file with this suffix, in any case; "paddle" if it is not an exported model."""
    suffix = Path(path).suffix.lower() if path else ""
    return next((engine for engine, suffixes in SUFFIXES.items() if suffix in suffixes), "paddle")


def open_predictor(engine, path, threads=None, device="cpu", onednn=True):
    """Predictor of an exported file.

    Args:
        engine: "inference", "onnxruntime" or "openvino".
        path: .json or .pdmodel (with .pdiparams and .yml beside it), .onnx, or .xml (with .bin beside it).
        threads: limit for one inference; default: OMP_NUM_THREADS, or else the engine's choice.
        device: "cpu", or for "inference" also "gpu" or "gpu:N".
        onednn: whether "inference" uses oneDNN on a CPU, the default of Paddle 3.

    Raises:
        UserError: the library or the file is missing, or the file is damaged or was not made by export.py.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES.get(engine, ()):
        expected = " or ".join(SUFFIXES.get(engine, ("weights, not an exported model",)))
        raise UserError(f"engine {engine} reads {expected}, not {path}")
    if not path.is_file():
        raise UserError(f"exported model {path} {'is a folder' if path.is_dir() else 'not found'}")
    if device.startswith("gpu") and engine != "inference":
        raise UserError(f"DEVICE is {device}, but engine {engine} runs only on the CPU here")
    threads = threads or asked_threads() or None
    if engine == "inference":
        return PaddleInference(path, threads, device, onednn)
    return {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[engine](path, threads)


def to_input(pixels, metadata):
    """uint8 (B, H, W, C) -> float32 (B, C, H, W), normalised."""
    mean, std = (np.array(values, np.float32) for values in (metadata.mean, metadata.std))
    return np.ascontiguousarray(normalized(pixels, mean, std).transpose(0, 3, 1, 2))


class Predictor:
    """Normalised images (B, C, H, W) -> logits (B, K), float32 arrays, for any B >= 1."""

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
        """Logits of exactly one batch."""
        raise NotImplementedError


class EagerPredictor(Predictor):
    """A Paddle model in eval mode, or the function that `microbatch.inference` makes of it."""

    def __init__(self, model, metadata):
        super().__init__(metadata)
        self.model = model

    def _run(self, images):
        import paddle  # here because the other engines run without it

        with paddle.no_grad():
            return self.model(paddle.to_tensor(images)).astype("float32").numpy()


class ExportedPredictor(Predictor):
    """An exported file in its engine. The engines' own exceptions, which share no base class, become UserErrors."""

    engine = None

    def __init__(self, path, *options):
        self.path = path
        super().__init__(self._in_one_line(self._load, *options))

    def _run(self, images):
        logits = self._in_one_line(self._infer, images)
        expected = (len(images), len(self.metadata.classes))
        if logits.shape != expected:
            raise UserError(f"{self.path} gives logits of shape {logits.shape}, not {expected}; export it again")
        return logits

    def _in_one_line(self, function, *arguments):
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as error:
            reason = textwrap.shorten(one_line(error), 300, placeholder=" ...")
            raise UserError(f"{self.path} cannot be read by {self.engine}: {reason}; export it again") from error

    def _load(self, *options):
        """Load the file. Returns its `Metadata`."""
        raise NotImplementedError

    def _infer(self, images):
        """Logits of exactly one batch."""
        raise NotImplementedError


class PaddleInference(ExportedPredictor):
    """`paddle.inference`."""

    engine = "paddle"

    def _load(self, threads, device, onednn):
        paddle = require("paddle", "engine inference")
        if self.path.suffix == ".json" and is_paddle_2(paddle):  # it would crash
            raise UserError(
                f"{self.path} was made by PaddlePaddle 3, this is {paddle.__version__}: export the model again with it"
            )
        metadata = read_sidecar(self.path)
        config = paddle.inference.Config(str(self.path), str(part_of(self.path, ".pdiparams")))
        if device.startswith("gpu"):
            from t2t_vit.models import tf32  # here because it imports Paddle

            tf32.allow(False)
            config.enable_use_gpu(256, int(device.partition(":")[2] or 0))
        else:
            config.disable_gpu()
            config.enable_mkldnn() if onednn else config.disable_mkldnn()
            config.set_cpu_math_library_num_threads(threads or cores())
        config.disable_glog_info()
        self.predictor = paddle.inference.create_predictor(config)
        self.input = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.output = self.predictor.get_output_handle(self.predictor.get_output_names()[0])
        return metadata

    def _infer(self, images):
        self.input.copy_from_cpu(images)
        self.predictor.run()
        return self.output.copy_to_cpu()


class OnnxRuntime(ExportedPredictor):
    """onnxruntime on the CPU."""

    engine = "onnxruntime"

    def _load(self, threads):
        ort = require("onnxruntime", "engine onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors
        self.session = ort.InferenceSession(str(self.path), options, ["CPUExecutionProvider"])
        return Metadata.from_entries(self.session.get_modelmeta().custom_metadata_map, self.path)

    def _infer(self, images):
        return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]


class OpenVino(ExportedPredictor):
    """OpenVINO on the CPU, computing in the precision of the file."""

    engine = "OpenVINO"

    def _load(self, threads):
        ov = require("openvino", "engine openvino")
        core = ov.Core()
        parts = (self.path,) if self.path.suffix == ".onnx" else (self.path, part_of(self.path, ".bin"))
        model = core.read_model(*parts)
        entries = _openvino_entries(model, self.path)
        if CHECKSUM in entries:
            check_part(self.path, ".bin", entries[CHECKSUM])
        metadata = Metadata.from_entries(entries, self.path)
        # By default OpenVINO computes in bfloat16 on a CPU that has it.
        options = {"INFERENCE_PRECISION_HINT": "bf16" if metadata.precision == "bf16" else "f32"}
        options |= {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        self.request = core.compile_model(model, "CPU", options).create_infer_request()
        return metadata

    def _infer(self, images):
        return np.array(self.request.infer({0: images})[0])


def _openvino_entries(model, path):
    """Entries of an .xml file (rt_info), or of an .onnx file, read with onnx because OpenVINO drops them."""
    if path.suffix == ".onnx":
        onnx = require("onnx", "engine openvino with an .onnx file")
        return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    return dict(model.get_rt_info(NAMESPACE).value) if model.has_rt_info(NAMESPACE) else {}


def read_sidecar(path):
    """`Metadata` of a Paddle inference model, from the .yml file beside it."""
    sidecar = part_of(path, ".yml")
    try:
        values = load_yaml(read_text(sidecar, 2**26), fast=True)
        for suffix, expected in values.get("files", {}).items():
            check_part(path, suffix, expected)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{sidecar} is damaged ({one_line(error)}); export the model again") from None
    return Metadata.from_values(values, path)
