"""AdamW with weight decay on weights only."""

import numpy as np
import paddle

from errors import UserError

NO_DECAY = ("cls_token", "pos_embed")
_SLOTS = ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0")  # what Paddle's AdamW keeps per parameter


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
    """AdamW over the trained parameters of `model`; `train` is the TRAIN section of the config.

    The learning rate is set before each epoch with `set_lr`.
    """
    named = dict(model.named_parameters())
    groups = parameter_groups(model)
    # Paddle asks with Parameter.name ("linear_0.w_0"), not with the structured name.
    decayed = {named[name].name for name in groups["decayed"]}
    return paddle.optimizer.AdamW(
        learning_rate=train.WARMUP_LR,
        beta1=train.BETAS[0],
        beta2=train.BETAS[1],
        epsilon=train.EPSILON,
        weight_decay=train.WEIGHT_DECAY,
        apply_decay_param_fun=lambda name: name in decayed,
        parameters=[named[name] for name in groups["decayed"] + groups["undecayed"]],
    )


def optimizer_state(optimizer, model):
    """State of the optimizer by structured parameter names; Paddle's own depend on what was built before."""
    state = {}
    for key, value in optimizer.state_dict().items():
        for name, parameter in model.named_parameters():
            if key.startswith(parameter.name + "_"):
                state[f"{name}/{key[len(parameter.name) + 1 :]}"] = value
    return state


def load_optimizer_state(optimizer, model, state, path):
    """Undo `optimizer_state`; `state` holds arrays, as `checkpoint.read` gives them from `path`.

    Raises UserError if it is not the state of every trained parameter, and of no other.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    expected = {f"{name}/{slot}" for name in trained for slot in _SLOTS}
    if not isinstance(state, dict) or set(state) != expected:
        raise UserError(f"{path} holds no AdamW state of the {len(trained)} trained tensors of this model")
    own = {}
    for key, value in state.items():
        name, _, slot = key.partition("/")
        shape = [1] if slot.endswith("pow_acc_0") else list(trained[name].shape)
        if not isinstance(value, np.ndarray) or list(value.shape) != shape:
            raise UserError(f"{path} does not fit the model: the optimizer's {key} is no array of shape {shape}")
        own[f"{trained[name].name}_{slot}"] = paddle.to_tensor(value)
    optimizer.set_state_dict(own)
