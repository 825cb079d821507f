"""Moving average of the weights."""

import copy

import paddle


class ModelEma:
    """Exponential moving average of all parameters and buffers, as timm 0.3.4's ModelEma in the official recipe.

    After each step e <- d e + (1 - d) w; it starts at the initial weights and knows no warm-up.

    Args:
        model: float32 model to follow; copied.
        decay: d.
    """

    def __init__(self, model, decay):
        self.model = copy.deepcopy(model)
        self.model.eval()
        for parameter in self.model.parameters():
            parameter.stop_gradient = True
        self.decay = decay

    @paddle.no_grad()
    def update(self, weights, ok):
        """Take one step towards `weights`, float tensors by name; `ok` (0-D bool) False leaves the average as it is."""
        share = (1 - self.decay) * ok.astype("float32")
        for name, average in self.model.state_dict().items():
            average.lerp_(weights[name], share)
