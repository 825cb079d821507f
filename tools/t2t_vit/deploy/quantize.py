"""Quantise models to 8 bits: OpenVINO's with NNCF, ONNX's with onnxruntime's static quantisation (QDQ).

Both calibrate the ranges of the activations on `batches`, an iterable of float32 (B, C, H, W).
"""

from __future__ import annotations

import contextlib
import io
import logging
import re

from t2t_vit.deploy.engines import require

# Weights of an ONNX model to quantise, by their names in deploy/fold.py. Pooling and head stay in float32, and so do
# convolutions: the first reads pixels, the performer computes exponentials, and quantising the last cost 0.1% on
# CIFAR-10. Of T2T-ViT-Dense, mlp.dense and the transitions are too small to be worth an error.
_QUANTIZED = re.compile(r"(blocks\.\d+\.(q|k|v|proj|mlp\.fc[12])|stages\.\d+\.(proj|mlp\.fc[12]))\.weight")
# Weights that NNCF leaves in float32, 3% of the multiplications. They compute mean and deviation of each window:
# in int8 they change 2.9% of the predicted classes of CIFAR-10, in float32 1.9%.
_EXACT = re.compile(r"stages\.\d+\.(kqv|qkv)\.(differences|means)\.weight")


@contextlib.contextmanager
def _silent():
    """Discard warnings in the log, and what Python code prints to stdout."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def quantize_openvino(model, batches):
    """Return a quantised OpenVINO model: one scale for each output channel of a weight, asymmetric activations.

    SmoothQuant is off. The inputs of the linear layers are normalised without scales, which fold.py puts into the
    weights, so there are no large channels to smooth: on CIFAR-10 the error was 1.3 to 2 times as large with it.
    """
    nncf = require("nncf", "an openvino file in int8")
    batches = list(batches)  # NNCF reads them several times
    exact = [node.friendly_name for node in model.get_ops() if any(map(_EXACT.fullmatch, _input_names(node)))]
    # Largest range of all batches. By default it is their mean, which cuts off values if batches are single images.
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    with _silent():
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=exact),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
                activations_range_estimator_params=ranges,
            ),
        )


def _input_names(node):
    return [each.get_source_output().get_node().friendly_name for each in node.inputs()]


def quantize_onnx(model, target, batches):
    """Write a quantised ONNX model, with one scale per output channel of each weight and one range per activation."""
    quantization = require("onnxruntime.quantization", "--precision int8")

    feeds = ({model.graph.input[0].name: batch} for batch in batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self):
            return next(feeds, None)

    nodes = [node.name for node in model.graph.node if any(map(_QUANTIZED.fullmatch, node.input))]
    with _silent():  # it advises preprocessing, which this graph does not need
        quantization.quantize_static(
            model,
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
