"""State of an optimizer, by structured parameter names."""

import numpy as np
import paddle

from t2t_vit.common.errors import UserError

# What Paddle keeps per parameter.
_SLOTS = {
    "AdamW": ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0"),
    "SGD": ("velocity_0",),
}
# Earlier versions let Paddle keep the float32 copies of AMP O2, and so named what belongs to them.
_OLD_MASTER, _OLD_PREFIX = "/master_weight", "fp32_master_0_"


def optimizer_state(optimizer):
    """State of an `Optimizer` by structured parameter names; its own tensors hold many parameters each."""
    state, weights = {}, optimizer.weights
    # What was loaded waits in the holder until the first step; paddle 2.6 leaves it out of state_dict().
    flat = {**getattr(optimizer.inner, "_accumulators_holder", {}), **optimizer.inner.state_dict()}
    for parameter, names, (start, _) in zip(optimizer.parameters, weights.groups, weights.bounds):
        for key, value in flat.items():
            if key.startswith(parameter.name + "_"):
                slot = key[len(parameter.name) + 1 :]
                for name in names:
                    state[f"{name}/{slot}"] = value if _is_power(slot) else weights.view(value, name, start)
    return state


def load_optimizer_state(optimizer, state, path):
    """Undo `optimizer_state`; `state` holds arrays, as `checkpoint.read` gives them from `path`.

    Raises UserError if it is not the state of every trained parameter, and of no other.
    """
    state = {key.replace(_OLD_PREFIX, ""): state[key] for key in state if not key.endswith(_OLD_MASTER)}
    kind = "SGD" if isinstance(optimizer.inner, paddle.optimizer.Momentum) else "AdamW"
    weights = optimizer.weights
    _check(state, {name: weights.places[name][1] for names in weights.groups for name in names}, kind, path)
    own = {}
    for parameter, names, bounds in zip(optimizer.parameters, weights.groups, weights.bounds):
        for slot in _SLOTS[kind]:
            values = {name: state[f"{name}/{slot}"] for name in names}
            own[f"{parameter.name}_{slot}"] = paddle.to_tensor(
                next(iter(values.values())) if _is_power(slot) else _flat(values, weights.places, bounds)
            )
    optimizer.inner.set_state_dict(own)


def _is_power(slot):
    return slot.endswith("pow_acc_0")


def _flat(values, places, bounds):
    flat = np.zeros(bounds[1] - bounds[0], np.float32)
    for name, value in values.items():
        start = places[name][0] - bounds[0]
        flat[start : start + value.size] = value.reshape(-1)
    return flat


def _check(state, shapes, kind, path):
    expected = {f"{name}/{slot}" for name in shapes for slot in _SLOTS[kind]}
    if set(state) != expected:
        raise UserError(
            f"{path} holds no {kind} state of the {len(shapes)} trained tensors of this model{_of_what(state)}; its "
            f"weights alone can be a start: --resume none MODEL.PRETRAINED {path}"
        )
    powers = {}
    for key, value in state.items():
        name, _, slot = key.rpartition("/")
        shape = [1] if _is_power(slot) else shapes[name]
        if not isinstance(value, np.ndarray) or list(value.shape) != shape:
            raise UserError(f"{path} does not fit the model: the optimizer's {key} is no array of shape {shape}")
        if _is_power(slot) and powers.setdefault(slot, value) != value:
            raise UserError(f"{path} is no state of one run: the optimizer has made other steps for {name}")


def _of_what(state):
    """How a state that does not fit describes itself, in words."""
    for kind, slots in _SLOTS.items():
        names = {key.rpartition("/")[0] for key in state if key.endswith(slots)}
        if names:
            return f", but one of {kind} for {len(names)} tensors (TRAIN.OPTIMIZER, TRAIN.FREEZE)"
    return ""
