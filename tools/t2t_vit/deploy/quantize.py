"""Quantise the large matrices of an ONNX model to 8 bits, by onnxruntime's static quantisation (QDQ)."""

import contextlib
import io
import logging
import re

from t2t_vit.deploy.engines import require

# Weights to quantise, by their names in deploy/fold.py. Convolutions, pooling and head stay in float32: the first
# convolution reads pixels, the performer computes exponentials, and quantising the last convolution cost 0.1% on
# CIFAR-10. Of T2T-ViT-Dense, mlp.dense and the transitions are too small to be worth an error.
_QUANTIZED = re.compile(r"(blocks\.\d+\.(q|k|v|proj|mlp\.fc[12])|stages\.\d+\.(proj|mlp\.fc[12]))\.weight")


def quantize(model, target, batches):
    """Write a quantised ONNX model, with one scale per output channel of each weight and one range per activation.

    The ranges are calibrated on `batches`, float32 (B, C, H, W).
    """
    quantization = require("onnxruntime.quantization", "--precision int8")

    feeds = ({model.graph.input[0].name: batch} for batch in batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self):
            return next(feeds, None)

    nodes = [node.name for node in model.graph.node if any(map(_QUANTIZED.fullmatch, node.input))]
    logging.disable(logging.WARNING)  # it advises preprocessing, which this graph does not need
    try:
        with contextlib.redirect_stdout(io.StringIO()):
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
    finally:
        logging.disable(logging.NOTSET)
