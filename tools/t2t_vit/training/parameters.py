"""Choose which parameters are trained, which of them have weight decay, and how the layer decay scales their rates."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

from paddle import nn

from t2t_vit.common.errors import UserError
from t2t_vit.models.layers import in_head


def parameter_groups(model):
    """Split the parameters of a model like timm's add_weight_decay, which the official recipe uses.

    Returns:
        {"decayed": names, "undecayed": names, "frozen": names}, structured names. "undecayed" are 1-D parameters,
        biases and what `no_weight_decay()` of the model or of a layer in it names. "frozen" are not trained.
    """
    groups, exempt = {"decayed": [], "undecayed": [], "frozen": []}, set()
    for prefix, layer in model.named_sublayers(include_self=True):
        names = layer.no_weight_decay() if hasattr(layer, "no_weight_decay") else ()
        exempt.update(f"{prefix}.{name}" if prefix else name for name in names)
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            groups["frozen"].append(name)
        elif parameter.ndim <= 1 or name.endswith(".bias") or name in exempt:
            groups["undecayed"].append(name)
        else:
            groups["decayed"].append(name)
    return groups


def layer_factors(model, layer_decay):
    """Return {name: layer_decay ** (number of layers above)} of the trained parameters, from `model.layer_index`.

    Raises ValueError if layer_decay is not 1 and the model has no `layer_index`.
    """
    if layer_decay == 1:
        return {name: 1.0 for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    if not hasattr(model, "layer_index"):
        kind = type(model).__name__
        raise ValueError(f"layer_decay {layer_decay} needs a model of create_model; {kind} has no layer_index")
    layers = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    last = max(layers.values())
    trained = [name for name, parameter in model.named_parameters() if not parameter.stop_gradient]
    return {name: layer_decay ** (last - layers[name]) for name in trained}


def param_groups(model: nn.Layer, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group the trained parameters of a model for an optimizer of Paddle, with weight decay as in the recipes.

    Args:
        model: a model of `create_model`, or any layer, also one that contains such a model.
        weight_decay: of weights. Biases, 1-D parameters and what `no_weight_decay()` of a layer names have none.
        layer_decay: the learning rate is multiplied by layer_decay ** (number of layers above). 1.0: the same in all,
            the only choice if the model is not of `create_model`.

    Returns:
        [{"params": parameters, "weight_decay": number, "learning_rate": factor of the optimizer's learning rate}].

    Raises:
        ValueError: weight_decay is below 0, layer_decay is not above 0 and at most 1, or the model has no layer_index.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay is {weight_decay} but must be 0 or more")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay} but must be above 0 and at most 1")
    decayed, groups = set(parameter_groups(model)["decayed"]), {}
    named = dict(model.named_parameters())
    for name, factor in layer_factors(model, layer_decay).items():
        groups.setdefault((name in decayed, factor), []).append(named[name])
    return [
        {"params": parameters, "weight_decay": float(weight_decay) if decays else 0.0, "learning_rate": float(factor)}
        for (decays, factor), parameters in groups.items()
    ]


def freeze(model, patterns):
    """Freeze the parameters whose structured names match `patterns`.

    If several patterns match a name, the last one decides. A pattern that starts with ! keeps a parameter trained.
    Parameters that the model itself never trains stay frozen.

    Raises UserError if a pattern matches nothing, or if nothing is left to train.
    """
    named = dict(model.named_parameters())
    frozen = set()
    for pattern in patterns:
        matching = fnmatch.filter(named, pattern.lstrip("!"))
        if not matching:
            raise UserError(f"TRAIN.FREEZE: {pattern} matches no parameter{_hint(pattern.lstrip('!'), model, named)}")
        frozen = frozen - set(matching) if pattern.startswith("!") else frozen | set(matching)
    for name in frozen:
        named[name].stop_gradient = True
    if all(parameter.stop_gradient for parameter in named.values()):
        raise UserError(f"TRAIN.FREEZE {list(patterns)} leaves nothing to train; add a pattern such as '!head*'")


def _hint(pattern, model, named):
    known = [*named, *(f"{name}.*" for name, layer in model.named_sublayers() if layer.parameters())]
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else f"; names are such as {', '.join(list(named)[-3:])}"


def frozen_layers(model):
    """List the layers that stay in eval mode during training, so that their dropout does not disturb trained layers.

    These are the layers whose parameters are all frozen. If only the head is trained, they are all other layers.
    """

    def is_frozen(parameters):
        return bool(parameters) and all(parameter.stop_gradient for parameter in parameters)

    head_only = all(in_head(name) or parameter.stop_gradient for name, parameter in model.named_parameters())
    return [
        layer
        for name, layer in model.named_sublayers()
        if (head_only and not in_head(name)) or is_frozen(layer.parameters())
    ]
