"""State of an optimizer, by structured parameter names."""

import numpy as np
import paddle

from errors import UserError

# What Paddle keeps per parameter.
_SLOTS = {
    "AdamW": ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0"),
    "SGD": ("velocity_0",),
}
_MASTER = "master_weight"  # float32 copy of a parameter, under AMP O2
_MASTER_NAME = "fp32_master_0"  # how Paddle names it, and so what the optimizer keeps for it


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
    kind = "SGD" if isinstance(optimizer, paddle.optimizer.Momentum) else "AdamW"
    expected = {f"{name}/{slot}": name for name, parameter in trained.items() for slot in _slots(kind, parameter)}
    if set(state) != set(expected):
        raise UserError(
            f"{path} holds no {kind} state of the {len(trained)} trained tensors of this model{_of_what(state)}; its "
            f"weights alone can be a start: --resume none MODEL.PRETRAINED {path}"
        )
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


def _slots(kind, parameter):
    if parameter.dtype == paddle.float32:
        return _SLOTS[kind]
    return [f"{_MASTER_NAME}_{slot}" for slot in _SLOTS[kind]] + [_MASTER]


def _of_what(state):
    """How a state that does not fit describes itself, in words."""
    for kind, slots in _SLOTS.items():
        names = {key.rpartition("/")[0] for key in state if key.endswith(slots)}
        if names:
            return f", but one of {kind} for {len(names)} tensors (TRAIN.OPTIMIZER, TRAIN.FREEZE)"
    return ""
