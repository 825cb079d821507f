"""AdamW with weight decay on weights only."""

import numpy as np
import paddle

from errors import UserError

NO_DECAY = ("cls_token", "pos_embed")
_SLOTS = ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0")  # what Paddle's AdamW keeps per parameter
_MASTER = "master_weight"  # float32 copy of a parameter, under AMP O2
_MASTER_NAME = "fp32_master_0"  # how Paddle names it, and so what the optimizer keeps for it


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
    # What was loaded waits in the holder until the first step; paddle 2.6 leaves it out of state_dict().
    flat = {**getattr(optimizer, "_accumulators_holder", {}), **optimizer.state_dict()}
    flat.update({f"{name}_{_MASTER}": value for name, value in flat.pop("master_weights", {}).items()})
    for key, value in flat.items():
        for name, parameter in model.named_parameters():
            if key.startswith(parameter.name + "_"):
                state[f"{name}/{key[len(parameter.name) + 1 :]}"] = value
    return state


def load_optimizer_state(optimizer, model, state, path):
    """Undo `optimizer_state`; `state` holds arrays, as `checkpoint.read` gives them from `path`.

    Raises UserError if it is not the state of every trained parameter, and of no other.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    if all(parameter.dtype == paddle.float32 for parameter in trained.values()):  # the state may be of AMP O2
        state = {key.replace(f"{_MASTER_NAME}_", ""): state[key] for key in state if not key.endswith(f"/{_MASTER}")}
    expected = {f"{name}/{slot}": name for name, parameter in trained.items() for slot in _slots(parameter)}
    if set(state) != set(expected):
        raise UserError(f"{path} holds no AdamW state of the {len(trained)} trained tensors of this model")
    own, masters = {}, {}
    for key, value in state.items():
        parameter, slot = trained[expected[key]], key.rpartition("/")[2]
        shape = [1] if slot.endswith("pow_acc_0") else list(parameter.shape)
        if not isinstance(value, np.ndarray) or list(value.shape) != shape:
            raise UserError(f"{path} does not fit the model: the optimizer's {key} is no array of shape {shape}")
        if slot == _MASTER:
            masters[parameter.name] = paddle.to_tensor(value)
            masters[parameter.name].name = f"{parameter.name}_{_MASTER_NAME}"
        else:
            own[f"{parameter.name}_{slot}"] = paddle.to_tensor(value)
    optimizer.set_state_dict({**own, "master_weights": masters} if masters else own)


def _slots(parameter):
    if parameter.dtype == paddle.float32:
        return _SLOTS
    return [f"{_MASTER_NAME}_{slot}" for slot in _SLOTS] + [_MASTER]
