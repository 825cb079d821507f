"""Parameters that a training leaves as they are."""

import difflib
import fnmatch

from t2t_vit.common.errors import UserError
from t2t_vit.models.layers import in_head


def freeze(model, patterns):
    """Stop the training of the parameters whose structured names match `patterns`.

    The last pattern that matches a name decides; one with ! before it keeps the parameter trained. What the model
    itself never trains stays so.

    Raises UserError for a pattern without a match, or if nothing is left to train.
    """
    named = dict(model.named_parameters())
    frozen = set()
    for pattern in patterns:
        matching = fnmatch.filter(named, pattern.lstrip("!"))
        if not matching:
            raise UserError(f"TRAIN.FREEZE: {pattern} matches no parameter{_near(pattern.lstrip('!'), model, named)}")
        frozen = frozen - set(matching) if pattern.startswith("!") else frozen | set(matching)
    for name in frozen:
        named[name].stop_gradient = True
    if all(parameter.stop_gradient for parameter in named.values()):
        raise UserError(f"TRAIN.FREEZE {list(patterns)} leaves nothing to train; add a pattern such as '!head*'")


def _near(pattern, model, named):
    known = [*named, *(f"{name}.*" for name, layer in model.named_sublayers() if layer.parameters())]
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else f"; names are such as {', '.join(list(named)[-3:])}"


def frozen_layers(model):
    """Layers that learn nothing, whose dropout and drop path would only blur what the others learn from.

    Those are the layers with parameters of which none is trained; if only the head is trained, all but the head.
    """
    probe = all(in_head(name) for name, parameter in model.named_parameters() if not parameter.stop_gradient)
    return [
        layer
        for name, layer in model.named_sublayers()
        if (probe and not in_head(name)) or _all_frozen(layer.parameters())
    ]


def _all_frozen(parameters):
    return bool(parameters) and all(parameter.stop_gradient for parameter in parameters)
