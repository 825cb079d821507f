"""What can be counted of a config's model without running it."""

import paddle

from t2t_vit.bench import macs
from t2t_vit.weights.build import build_model


def count(cfg):
    """Parameters, multiplications and activations of the model of a config, of one image.

    Returns:
        dict: parameters (trainable_parameters of them), weights_mb (float32), gmacs (of which gmacs_without are without
        the products between the tokens of the backbone's blocks), token_module_gmacs (T2T module alone), tokens (of the
        first layer), activations
        (elements that matrix products put out: linear layers, convolutions, and products between tokens).
    """
    with paddle.LazyGuard():  # shapes and no values
        model = build_model(cfg)
    products = macs.products(model)
    parameters = model.parameters()
    total = sum(parameter.size for parameter in parameters)
    return {
        "parameters": total,
        "trainable_parameters": sum(parameter.size for parameter in parameters if not parameter.stop_gradient),
        "weights_mb": 4 * total / 2**20,
        "gmacs": macs.macs(products) / 1e9,
        "gmacs_without": macs.macs(products, attention=False) / 1e9,
        "token_module_gmacs": macs.macs(macs.token_module(products)) / 1e9,
        "tokens": products[0].rows,
        "activations": sum(product.outputs for product in products),
    }
