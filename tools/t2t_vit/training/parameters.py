"""Which parameters are trained, and which of them decay."""

import difflib
import fnmatch

from t2t_vit.common.errors import UserError
from t2t_vit.models.layers import in_head

NO_DECAY = ("cls_token", "pos_embed")


def parameter_groups(model):
    """Split parameters by their structured names, as timm's add_weight_decay does for the official recipe.

    Returns:
        {"decayed": names, "undecayed": names, "frozen": names}. Undecayed are 1-D parameters, biases, cls_token and
        pos_embed; frozen ones are not trained.
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
    """Freeze the parameters that match `patterns` by their structured names.

    The last pattern that matches a name decides. A pattern that begins with ! keeps the parameter trained. Parameters
    that the model itself never trains stay frozen.

    Raises UserError for a pattern without a match, or if nothing is left to train.
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
    """Layers that stay in eval mode in training, so that their dropout does not disturb the layers that learn.

    A layer is one of these if all its parameters are frozen; if only the head is trained, every other layer is.
    """

    def is_frozen(parameters):
        return bool(parameters) and all(parameter.stop_gradient for parameter in parameters)

    head_only = all(in_head(name) or parameter.stop_gradient for name, parameter in model.named_parameters())
    return [
        layer
        for name, layer in model.named_sublayers()
        if (head_only and not in_head(name)) or is_frozen(layer.parameters())
    ]
