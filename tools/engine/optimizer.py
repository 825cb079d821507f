"""AdamW or SGD, with weight decay on weights only."""

import paddle

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


def build_optimizer(model, train):
    """Optimizer over the trained parameters of `model`; `train` is the TRAIN section of the config.

    Its learning rate is set before each step with `set_learning_rate`.
    """
    named = dict(model.named_parameters())
    groups = parameter_groups(model)
    parameters = [named[name] for name in groups["decayed"] + groups["undecayed"]]
    if train.OPTIMIZER == "sgd":
        for name in groups["decayed"]:
            named[name].regularizer = paddle.regularizer.L2Decay(train.WEIGHT_DECAY)
        return paddle.optimizer.Momentum(train.WARMUP_LR, train.MOMENTUM, parameters)
    # Paddle asks with Parameter.name ("linear_0.w_0"), not with the structured name.
    decayed = {named[name].name for name in groups["decayed"]}
    return paddle.optimizer.AdamW(
        learning_rate=train.WARMUP_LR,
        beta1=train.BETAS[0],
        beta2=train.BETAS[1],
        epsilon=train.EPSILON,
        weight_decay=train.WEIGHT_DECAY,
        apply_decay_param_fun=lambda name: name in decayed,
        parameters=parameters,
    )


def set_learning_rate(optimizer, lr, ok):
    """Make the next step one with `lr`, or with 0 where `ok` (0-D bool, on the device) is False."""
    optimizer.set_lr(lr)
    optimizer._create_global_learning_rate()  # the tensor that the update reads; there is no public name for it
    paddle.assign(optimizer._global_learning_rate() * ok.astype("float32"), optimizer._global_learning_rate())
