"""Choose which parameters are trained, and which of them have weight decay."""

import difflib
import fnmatch

from t2t_vit.common.errors import UserError
from t2t_vit.models.layers import in_head

NO_DECAY = ("cls_token", "pos_embed")


def parameter_groups(model):
    """Split the parameters of a model like timm's add_weight_decay, which the official recipe uses.

    Returns:
        {"decayed": names, "undecayed": names, "frozen": names}, structured names. "undecayed" are 1-D parameters,
        biases, cls_token and pos_embed. "frozen" are not trained.
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
