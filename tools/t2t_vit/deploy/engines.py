"""Inference engines behind one interface: float32 images in, float32 logits out. All engines are imported lazily.

predictor = open_predictor("onnxruntime", "output/lit_data/export/lit_data.onnx")
logits = predictor(images)  # (B, C, H, W), normalised by predictor.metadata -> (B, K)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.files import read_text, sha256
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.common.runtime import asked_threads, cores
from t2t_vit.data.transforms import model_input
from t2t_vit.deploy.metadata import NAMESPACE, Metadata

ENGINES = ("paddle", "inference", "onnxruntime", "openvino")
# Suffixes of the files that each engine reads. "paddle" runs weights.
SUFFIXES = {"inference": (".json", ".pdmodel"), "onnxruntime": (".onnx",), "openvino": (".xml", ".onnx")}
CHECKSUM = "checksum_of_bin"  # in OpenVINO's rt_info


def require(module: str, what: str, packages: str = "") -> Any:
    """Import an optional library. Raises UserError with its name, and how to install it or `packages`, if missing.

    The telemetry of OpenVINO, NNCF and onnxruntime, which writes to the home folder and uses the network, is off.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import fails, they do without it
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        words = f"{what} needs {missing}, which is not installed: pip install {packages or missing}"
        raise UserError(words) from None
    except ImportError as error:
        raise UserError(f"{what} needs {module}, which cannot be imported: {one_line(error)}") from error


def is_paddle_2(paddle):
    """Whether this PaddlePaddle writes and reads .pdmodel instead of .json."""
    return paddle.__version__.startswith("2.")


def checksum(path):
    """Return the checksum of a file, as an exported model stores it for its other files."""
    return sha256(path)[:16]


def _check_part(path, suffix, expected):
    """Raise UserError if the file with this suffix beside `path` is from another export."""
    part = path.with_suffix(suffix)
    if checksum(part) != expected:
        raise UserError(f"{part} is not the file that was exported with {path}; export it again")


def engine_of(path):
    """Return the first engine that reads a file with this suffix; "paddle" if it is not an exported model."""
    suffix = Path(path).suffix.lower() if path else ""
    return next((engine for engine, suffixes in SUFFIXES.items() if suffix in suffixes), "paddle")


def open_predictor(
    engine: str,
    path: str | Path,
    threads: int | None = None,
    device: str = "cpu",
    onednn: bool = True,
    parallel: int = 1,
) -> Predictor:
    """Open an exported file as a `Predictor`.

    Args:
        engine: "inference", "onnxruntime" or "openvino".
        path: .json or .pdmodel (with .pdiparams and .yml beside it), .onnx, or .xml (with .bin beside it).
        threads: limit for one inference; default: OMP_NUM_THREADS, or else the engine's choice.
        device: "cpu", or for "inference" also "gpu" or "gpu:N".
        onednn: whether "inference" uses oneDNN on a CPU, the default of Paddle 3.
        parallel: inferences that may run at the same time, each on one thread, in onnxruntime and OpenVINO. Paddle
            Inference keeps Python's other threads waiting, so it has one, on all threads.

    Raises:
        UserError: the library or file is missing, or the file is damaged or was not made by export.py.
    """
    path = _found(engine, Path(path), device)
    threads = threads or asked_threads()
    with _in_one_line(path, engine):
        if engine == "inference":
            parallel = 1
            run, metadata = _paddle_inference(path, threads, device, onednn)
        else:
            run, metadata = {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](path, threads, parallel)

    def run_and_check(images):
        with _in_one_line(path, engine):
            logits = run(images)
        expected = (len(images), len(metadata.classes))
        if logits.shape != expected:
            raise UserError(f"{path} gives logits of shape {logits.shape}, not {expected}; export it again")
        return logits

    return Predictor(run_and_check, metadata, parallel)


def _found(engine, path, device):
    """Return the path of a file that the engine reads, without links. For the arguments see `open_predictor`."""
    if path.suffix not in SUFFIXES.get(engine, ()):
        expected = " or ".join(SUFFIXES.get(engine, ("weights, not an exported model",)))
        raise UserError(f"engine {engine} reads {expected}, not {path}")
    if not path.is_file():
        raise UserError(f"exported model {path} {'is a folder' if path.is_dir() else 'not found'}")
    if device.startswith("gpu") and engine != "inference":
        raise UserError(f"DEVICE is {device}, but engine {engine} runs only on the CPU here")
    return Path(os.path.realpath(path))  # the other files are beside the target of a link


@contextlib.contextmanager
def _in_one_line(path, engine):
    """Turn the engines' own exceptions, which share no base class, into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = textwrap.shorten(one_line(error), 300, placeholder=" ...")
        raise UserError(f"{path} cannot be read by {engine}: {reason}; export it again") from error


def to_input(pixels: np.ndarray, metadata: Metadata) -> np.ndarray:
    """uint8 (B, H, W, C) -> float32 (B, C, H, W), normalised."""
    return model_input(pixels, metadata.mean, metadata.std)


class Predictor:
    """Maps normalised images (B, C, H, W) to logits (B, K), float32 arrays, for any B >= 1.

    `run` takes one batch. Up to `parallel` batches are computed at the same time, of one call or of several threads'.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], metadata: Metadata, parallel: int = 1) -> None:
        self.run, self.metadata, self.parallel = run, metadata, parallel
        self._map = ThreadPoolExecutor(parallel).map if parallel > 1 else map

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        expected = (self.metadata.channels, *self.metadata.image_size)
        if images.shape[1:] != expected:
            raise UserError(f"the model takes images of shape {expected}, not {images.shape[1:]}")
        count, size = len(images), self.metadata.batch_size or len(images)
        if missing := -count % size:
            images = np.concatenate([images, np.zeros((missing, *expected), np.float32)])
        batches = [images[i : i + size] for i in range(0, count, size)]
        return np.concatenate(list(self._map(self.run, batches)))[:count]


def eager_predictor(model, metadata):
    """Wrap a Paddle model in eval mode, or the result of `microbatch.inference`, as a `Predictor`."""
    import paddle  # here because the other engines run without it

    def run(images):
        with paddle.no_grad():
            return model(paddle.to_tensor(images)).astype("float32").numpy()

    return Predictor(run, metadata)


# --- Engines: each opens a file and returns (function of one batch, `Metadata`) ---


def _paddle_inference(path, threads, device, onednn):
    paddle = require("paddle", "engine inference")
    if path.suffix == ".json" and is_paddle_2(paddle):  # Paddle would crash
        raise UserError(
            f"{path} was exported by PaddlePaddle 3, but this is {paddle.__version__}: export the model again here"
        )
    parameters = path.with_suffix(".pdiparams")
    if not parameters.is_file():  # otherwise Paddle would run without them
        raise UserError(f"{path} needs {parameters}, which does not exist; export it again")
    values = load_yaml(read_text(path.with_suffix(".yml"), 2**26), fast=True)
    for suffix, expected in values.get("files", {}).items():
        _check_part(path, suffix, expected)
    metadata = Metadata.from_values(values, path)
    config = paddle.inference.Config(str(path), str(parameters))
    if device.startswith("gpu"):
        from t2t_vit.models import tf32  # here because it imports Paddle

        tf32.allow(False)
        config.enable_use_gpu(256, int(device.partition(":")[2] or 0))
    else:
        config.disable_gpu()
        config.enable_mkldnn() if onednn else config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(threads or cores())
    config.disable_glog_info()
    predictor = paddle.inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    result = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images):
        source.copy_from_cpu(images)
        predictor.run()
        return result.copy_to_cpu()

    return run, metadata


def _onnxruntime(path, threads, parallel):
    ort = require("onnxruntime", "engine onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads if parallel == 1 else 1  # of the thread that calls
    options.log_severity_level = 3  # errors only
    session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    metadata = Metadata.from_entries(session.get_modelmeta().custom_metadata_map, path)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0], metadata


def _openvino(path, threads, parallel):
    ov = require("openvino", "engine openvino")
    core = ov.Core()
    model = core.read_model(path)
    if path.suffix == ".onnx":  # OpenVINO drops the metadata of .onnx files
        onnx = require("onnx", "engine openvino with an .onnx file")
        entries = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    else:
        entries = dict(model.get_rt_info(NAMESPACE).value) if model.has_rt_info(NAMESPACE) else {}
    if CHECKSUM in entries:
        _check_part(path, ".bin", entries[CHECKSUM])
    metadata = Metadata.from_entries(entries, path)
    # bf16 also for what an int8 file leaves in floating point. With AVX-512 but without bfloat16, OpenVINO would obey a
    # hint of bf16 and emulate it, slowly.
    is_coarse = metadata.precision != "fp32" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = {"INFERENCE_PRECISION_HINT": "bf16" if is_coarse else "f32"}
    if parallel == 1:
        options |= {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    else:
        options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": parallel, "INFERENCE_NUM_THREADS": parallel}
    compiled = core.compile_model(model, "CPU", options)
    free = queue.SimpleQueue()  # requests that no thread uses
    for _ in range(parallel):
        free.put(compiled.create_infer_request())

    def run(images):
        request = free.get()
        try:
            return np.array(request.infer({0: images})[0])
        finally:
            free.put(request)

    return run, metadata
