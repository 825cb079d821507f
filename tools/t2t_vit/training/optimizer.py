"""AdamW or SGD, with weight decay on weights only."""

import paddle

from t2t_vit.training.flat import FlatGradients, FlatWeights
from t2t_vit.training.layer_rates import LayerRates

NO_DECAY = ("cls_token", "pos_embed")


def parameter_groups(model):
    """Split parameters by their structured names, as timm's add_weight_decay does for the official recipe.

    Returns:
        {"decayed": names, "undecayed": names, "frozen": names}; undecayed are 1-D parameters, biases, cls_token and
        pos_embed, frozen ones are never trained.
    """
    groups = {"decayed": [], "undecayed": [], "frozen": []}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            groups["frozen"].append(name)
        elif parameter.ndim <= 1 or name.endswith(".bias") or name in NO_DECAY:
            groups["undecayed"].append(name)
        else:
            groups["decayed"].append(name)
    return groups


class Optimizer:
    """Paddle's AdamW or SGD over the trained parameters of a model.

    Parameters with the same learning rate and weight decay lie side by side in one tensor and are updated as one, by
    the same arithmetic. Paddle's AdamW would start an operation for each (2.6.2, 3.3.1).

    Args:
        model: float32 model, whose weights are updated in place.
        train: the TRAIN section of the config.
        live: model that has the gradients: `model`, or a copy of it in 16 bits, which follows it.
    """

    def __init__(self, model, train, live=None):
        live = live or model
        self.model = model
        self.rates = LayerRates(model, train)
        decayed = set(parameter_groups(model)["decayed"])
        groups = _alike(live, self.rates, decayed)
        self.weights = FlatWeights(model, groups)
        self.parameters = self.weights.parameters()
        self.inner = _build(self.parameters, [names[0] in decayed for names in groups], train)
        self.gradients = FlatGradients(live, self.weights)
        self.copy = None  # of `weights.values` in 16 bits
        if live is not model:
            self.weights.adopt(live, self.weights.values)  # what stays float32 in a 16-bit model
            low = {tensor.dtype for tensor in live.state_dict().values()} - {paddle.float32}
            self.copy = self.weights.values.astype(*low)
            self.weights.adopt(live, self.copy)

    def collect_gradients(self):
        """Gradient of all trained parameters, one float32 tensor: the next `inner.step()` follows what it holds then.

        The parameters' own gradients are dropped.
        """
        return self.gradients.collect(self.parameters)

    def set_learning_rate(self, lr, epoch, ok):
        """Make the next step one with the head's rate `lr`, or with 0 where `ok` (0-D bool, on the device) is False."""
        factors = self.rates.factors(epoch)
        for parameter, names in zip(self.parameters, self.weights.groups):
            parameter.optimize_attr["learning_rate"] = factors[names[0]]
        self.inner.set_lr(lr)
        self.inner._create_global_learning_rate()  # the tensor that the update reads; there is no public name for it
        rate = self.inner._global_learning_rate()
        paddle.assign(rate * ok.astype("float32"), rate)

    def take_weights(self):
        """To be called after the model's weights were set, which may have given them memory of their own."""
        self.weights.adopt(self.model, self.weights.values)
        self.refresh()

    @paddle.no_grad()
    def refresh(self):
        """Let the copy in 16 bits follow the weights."""
        if self.copy is not None:
            paddle.assign(self.weights.values.astype(self.copy.dtype), self.copy)


def _alike(live, rates, decayed):
    """Names of the trained parameters in lists of the same type in `live`, weight decay and learning rate."""
    named = dict(live.named_parameters())
    keys = {name: (named[name].dtype == paddle.float32, name in decayed, rates.kind(name)) for name in rates.trained}
    return [[name for name in keys if keys[name] == key] for key in sorted(set(keys.values()))]


def _build(parameters, decays, train):
    if train.OPTIMIZER == "sgd":
        for parameter, decay in zip(parameters, decays):
            parameter.regularizer = paddle.regularizer.L2Decay(train.WEIGHT_DECAY) if decay else None
        return paddle.optimizer.Momentum(train.WARMUP_LR, train.MOMENTUM, parameters)
    decayed = {parameter.name for parameter, decay in zip(parameters, decays) if decay}
    return paddle.optimizer.AdamW(
        learning_rate=train.WARMUP_LR,
        beta1=train.BETAS[0],
        beta2=train.BETAS[1],
        epsilon=train.EPSILON,
        weight_decay=train.WEIGHT_DECAY,
        apply_decay_param_fun=lambda name: name in decayed,
        parameters=parameters,
    )
