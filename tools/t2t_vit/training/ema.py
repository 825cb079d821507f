"""Exponential moving average (EMA) of the weights."""

import copy

import paddle


class ModelEma:
    """Exponential moving average of all parameters and buffers, like timm 0.3.4's ModelEma in the official recipe.

    After each step, e <- d e + (1 - d) w, where d is the decay. It starts with the initial weights, without warm-up.
    `weights` are the `FlatWeights` of the float32 model. The model is copied.
    """

    def __init__(self, model, weights, decay):
        self.model = copy.deepcopy(model)
        self.model.eval()
        for parameter in self.model.parameters():
            parameter.stop_gradient = True
        self.weights, self.decay = weights, decay
        self.values = paddle.zeros_like(weights.values)  # flat tensor; the averages are slices of it
        self.take_weights()

    def take_weights(self):
        """Move the weights of `model` back to the flat tensor. Call it after setting them, which may move them out."""
        self.weights.adopt(self.model, self.values)

    @paddle.no_grad()
    def update(self, ok):
        """Update the average with the weights of the trained model, unless `ok` (0-D bool) is False."""
        self.values.lerp_(self.weights.values, (1 - self.decay) * ok.astype("float32"))
