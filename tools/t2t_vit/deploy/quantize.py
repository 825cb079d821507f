"""8-bit integers for the large matrices of an ONNX model, by onnxruntime's static quantisation (QDQ)."""

import contextlib
import io
import logging
import re

from t2t_vit.deploy.engines import require

# By their names in deploy/fold.py. The convolutions stay in float32, of which the first see the pixels and the features
# of a performer are exponentials (the last too: 0.1 % of CIFAR-10's images), and so do the pooling and the head.
_QUANTIZED = re.compile(r"(blocks\.\d+\.(q|k|v|proj|mlp\.fc[12])|stages\.\d+\.(proj|mlp\.fc[12]))\.weight")


def quantize(model, target, batches):
    """Write `model`, a ModelProto, quantised, to the path `target`.

    Weights have a scale per output channel, activations a range, that of their values over `batches`, an iterable of
    float32 arrays of the input's shape.
    """
    quantization = require("onnxruntime.quantization", "--precision int8")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.feeds = ({model.graph.input[0].name: batch} for batch in batches)

        def get_next(self):
            return next(self.feeds, None)

    nodes = [node.name for node in model.graph.node if any(map(_QUANTIZED.fullmatch, node.input))]
    logging.disable(logging.WARNING)  # its advice to run its preprocessing, which paddle2onnx's graph needs not
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
