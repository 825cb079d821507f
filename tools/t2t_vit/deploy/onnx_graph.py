"""Convert a Paddle inference model to ONNX with paddle2onnx, and simplify the graph."""

import contextlib
import os
import sys

import onnx

from t2t_vit.common.errors import UserError
from t2t_vit.deploy.engines import require

OPSET = 17  # the first with LayerNormalization


def to_onnx(program, parameters, names):
    """Convert a Paddle inference model to an onnx.ModelProto. `names`: {parameter name: structured name}."""
    paddle2onnx = require("paddle2onnx", "--format onnx")
    with _quiet():
        # Without an output file (None), paddle2onnx does not fold constants with Polygraphy, which installs packages.
        data = paddle2onnx.export(str(program), str(parameters), None, opset_version=OPSET, enable_onnx_checker=False)
    if not data:
        raise UserError(f"paddle2onnx {paddle2onnx.__version__} cannot convert this model (--debug shows its messages)")
    model = onnx.load_from_string(data)
    _tidy(model.graph, names)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _quiet():
    """Discard what C++ code prints to stdout and stderr."""
    sys.stdout.flush()
    copies, null = [os.dup(stream) for stream in (1, 2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(null, stream)
        yield
    finally:
        sys.stdout.flush()
        for stream, copy in zip((1, 2), copies):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(null)


def _tidy(graph, names):
    """Turn constants into initializers, remove identities and unused tensors, and name the weights and the output."""
    aliases = {**names, graph.output[0].name: "logits"}
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
    output = graph.output[0].name
    for node in [node for node in graph.node if node.op_type == "Identity" and node.output[0] != output]:
        aliases[node.output[0]] = aliases.get(node.input[0], node.input[0])
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [aliases.get(name, name) for name in node.input]
        node.output[:] = [aliases.get(name, name) for name in node.output]
    graph.output[0].name = "logits"
    for tensor in graph.initializer:
        tensor.name = aliases.get(tensor.name, tensor.name)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
