"""AdamW or SGD for the trained parameters, with weight decay only on weights. Its state is stored by parameter name."""

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.training.flat import FlatGradients, FlatWeights
from t2t_vit.training.parameters import parameter_groups
from t2t_vit.training.schedule import LayerRates

# State that Paddle keeps per parameter.
_SLOTS = {
    "AdamW": ("moment1_0", "moment2_0", "beta1_pow_acc_0", "beta2_pow_acc_0"),
    "SGD": ("velocity_0",),
}


class Optimizer:
    """Paddle's AdamW or SGD for the trained parameters of a model.

    Parameters with the same learning rate and weight decay are contiguous in one tensor and are updated together, with
    the same arithmetic. Otherwise Paddle's AdamW would start an operation for each parameter (2.6.2, 3.3.1).

    Args:
        model: float32 model, whose weights are updated in place.
        train: the TRAIN section of the config.
        live: model that computes the gradients: `model`, or its 16-bit copy, which is updated with it.
    """

    def __init__(self, model, train, live=None):
        live = live or model
        self.model, self.clip_norm = model, train.CLIP_NORM
        self.rates = LayerRates(model, train)
        decayed = set(parameter_groups(model)["decayed"])
        groups = _group(live, self.rates, decayed)
        self.weights = FlatWeights(model, groups)
        self.parameters = self.weights.parameters()  # one per group
        self.inner = _build(self.parameters, [names[0] in decayed for names in groups], train)
        self.gradients = FlatGradients(live, self.weights)
        self.copy = None  # 16-bit copy of `weights.values`
        if live is not model:
            self.weights.adopt(live, self.weights.values)  # tensors that stay float32 in a 16-bit model
            low = {tensor.dtype for tensor in live.state_dict().values()} - {paddle.float32}
            self.copy = self.weights.values.astype(*low)
            self.weights.adopt(live, self.copy)

    @paddle.no_grad()
    def step(self, lr, epoch, scaler):
        """Unscale and clip the gradients, and update the weights. `lr` is the learning rate of the head in this epoch.

        Returns (gradient norm before clipping, whether it is finite), 0-D tensors. If not finite, nothing changes.
        """
        gradient = self.collect_gradients()
        scaler.unscale_(self.inner)
        norm = gradient.square().sum().sqrt()
        ok = paddle.isfinite(norm)
        if self.clip_norm:
            gradient.multiply_((self.clip_norm / (norm + 1e-6)).clip(max=1.0))
        # A bad step runs with gradient 0 and learning rate 0, because a branch on `ok` would wait for the device.
        gradient.masked_fill_(~ok, 0.0)
        self._set_learning_rate(lr, epoch, ok)
        scaler.step(self.inner)
        scaler.update()
        self.inner.clear_grad(set_to_zero=False)
        self._refresh_copy()
        return norm, ok

    def collect_gradients(self):
        """Move the gradients of all trained parameters to one float32 tensor, which `inner.step()` uses."""
        return self.gradients.collect(self.parameters)

    def _set_learning_rate(self, lr, epoch, ok):
        factors = self.rates.factors(epoch)
        for parameter, names in zip(self.parameters, self.weights.groups):
            parameter.optimize_attr["learning_rate"] = factors[names[0]]
        self.inner.set_lr(lr)
        self.inner._create_global_learning_rate()  # the tensor that the update uses; it has no public name
        rate = self.inner._global_learning_rate()
        paddle.assign(rate * ok.astype("float32"), rate)

    def take_weights(self):
        """Move the model's weights back to the flat tensor. Call this after setting them, which may move them out."""
        self.weights.adopt(self.model, self.weights.values)
        self._refresh_copy()

    @paddle.no_grad()
    def _refresh_copy(self):
        if self.copy is not None:
            paddle.assign(self.weights.values.astype(self.copy.dtype), self.copy)

    # --- State ---

    def state(self):
        """Return the state: {"parameter name/slot": tensor}."""
        state = {}
        # Until the first step, a loaded state is in this holder. Paddle 2.6 omits it from state_dict().
        flat = {**getattr(self.inner, "_accumulators_holder", {}), **self.inner.state_dict()}
        for parameter, names, (start, _) in zip(self.parameters, self.weights.groups, self.weights.bounds):
            for key, value in flat.items():
                if key.startswith(parameter.name + "_"):
                    slot = key[len(parameter.name) + 1 :]
                    for name in names:
                        view = value if _is_power(slot) else self.weights.view(value, name, start)
                        state[f"{name}/{slot}"] = view
        return state

    def load_state(self, state, path):
        """Restore `state`, as returned by `checkpoint.read(path)` (NumPy arrays).

        Raises UserError unless it is the state of exactly the trained parameters.
        """
        kind = "SGD" if isinstance(self.inner, paddle.optimizer.Momentum) else "AdamW"
        weights = self.weights
        trained = [name for names in weights.groups for name in names]
        if set(state) != {f"{name}/{slot}" for name in trained for slot in _SLOTS[kind]}:
            raise UserError(
                f"{path} has no {kind} state for the {len(trained)} trained tensors of this model (TRAIN.OPTIMIZER, "
                f"TRAIN.FREEZE); to start from its weights only: --resume none MODEL.PRETRAINED {path}"
            )
        flat = {}
        for parameter, names, bounds in zip(self.parameters, weights.groups, weights.bounds):
            for slot in _SLOTS[kind]:
                values = {name: state[f"{name}/{slot}"] for name in names}
                value = values[names[0]] if _is_power(slot) else _side_by_side(values, weights.places, bounds)
                flat[f"{parameter.name}_{slot}"] = paddle.to_tensor(value)
        self.inner.set_state_dict(flat)


def _group(live, rates, decayed):
    """Group the trained parameters by type in `live`, weight decay and learning rate. Returns lists of names."""
    named = dict(live.named_parameters())
    keys = {
        name: (named[name].dtype == paddle.float32, name in decayed, rates.group_key(name)) for name in rates.decays
    }
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


def _is_power(slot):
    return slot.endswith("pow_acc_0")


def _side_by_side(values, places, bounds):
    flat = np.zeros(bounds[1] - bounds[0], np.float32)
    for name, value in values.items():
        start = places[name][0] - bounds[0]
        flat[start : start + value.size] = value.reshape(-1)
    return flat
