"""Create a model with published weights, or with those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2t_vit.common.errors import UserError
from t2t_vit.models import zoo
from t2t_vit.models.family import VisionTransformer
from t2t_vit.weights import published
from t2t_vit.weights.download import download_published, local_file
from t2t_vit.weights.formats import read_weights
from t2t_vit.weights.load import load_weights


def create_model(
    name: str, *, pretrained: str | Path | bool | None = None, num_classes: int | None = None, **overrides: Any
) -> VisionTransformer:
    """Build a model, with weights if `pretrained` is given.

    Args:
        name: one of `list_models()`.
        pretrained: weights: a file, a URL, a published name such as "t2t_vit_14.official", or True, the published
            weights of `name`. They are downloaded once. If their image size, classes or channels differ from the
            model's, the positions are resized, the head is new, and the first layer is adapted.
        num_classes: width of the logits; 0 for a model that returns its features. Default: as the weights have it, or
            1000 without weights.
        overrides: see `models.zoo.create_model`.

    Returns:
        A `paddle.nn.Layer`: (B, in_chans, H, W) float -> (B, num_classes) logits.

    Raises:
        ValueError: the name is unknown (the message suggests similar ones), or arguments do not fit together.
        UserError: the weights are missing, cannot be downloaded, or belong to another model. One line.
    """
    zoo.family_of(name)  # an unknown name is an error before the download
    if pretrained is None or pretrained is False:
        return zoo.create_model(name, num_classes=1000 if num_classes is None else num_classes, **overrides)
    weights = read_weights(_file_of(name, pretrained))
    if num_classes is None:
        num_classes = weights.shapes.get("head.bias", (0,))[0]
    model = zoo.create_model(name, num_classes=num_classes, **overrides)
    load_weights(model, weights, head="fit")
    return model


def _file_of(name, pretrained):
    if pretrained is True:
        return download_published(published.weights_of(name))
    if not pretrained:
        raise UserError("pretrained is empty; give it a file, a URL or a published name, or None for new weights")
    return local_file(pretrained, "give pretrained a file, a URL or a published name", Path.cwd())
