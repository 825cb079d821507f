"""The learning rate is a pure function of epoch and layer, so that a resumed run cannot be off by one."""

import math

from t2t_vit.models.layers import in_head
from t2t_vit.training.parameters import layer_factors


def learning_rate(epoch, train, peak=None):
    """Return the learning rate of an epoch, as in T2T-ViT's main.py, which uses timm 0.3.4's CosineLRScheduler.

    The warm-up rises linearly from WARMUP_LR (in epoch 0) towards BASE_LR. The cosine also counts from epoch 0, so the
    first epoch after the warm-up is already slightly below BASE_LR. During COOLDOWN_EPOCHS, the rate is MIN_LR.

    Args:
        epoch: from 0.
        train: the TRAIN section of the config.
        peak: used instead of BASE_LR, for a part of the model with its own learning rate.
    """
    peak = train.BASE_LR if peak is None else peak
    if epoch < train.WARMUP_EPOCHS:
        return train.WARMUP_LR + epoch * (peak - train.WARMUP_LR) / train.WARMUP_EPOCHS
    if epoch < train.EPOCHS:
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / train.EPOCHS))
        return train.MIN_LR + (peak - train.MIN_LR) * cosine
    return train.MIN_LR


def total_epochs(train):
    """Return the number of epochs of a run, including the cooldown."""
    return train.EPOCHS + train.COOLDOWN_EPOCHS


class LayerRates:
    """Learning rate of each trained parameter, as a multiple of the head's.

    The head follows a cosine from BASE_LR, all other layers a cosine from BACKBONE_LR. Both end at MIN_LR, as in
    T2T-ViT's transfer_learning.py. Rates are multiplied by LAYER_DECAY ** (number of layers above), as in ELECTRA
    (Clark et al., 2020, appendix B) and BEiT. `model.layer_index(name)` gives the layer of a parameter.
    """

    def __init__(self, model, train):
        self.train = train
        self.decays = layer_factors(model, train.LAYER_DECAY)
        self.layers = {name: model.layer_index(name) for name in self.decays}

    def factors(self, epoch):
        """Return {name: learning rate / learning rate of the head} in an epoch (from 0)."""
        train = self.train
        head = learning_rate(epoch, train)
        # Either both rates are 0.0 (MIN_LR or WARMUP_LR 0.0), or none is.
        backbone = learning_rate(epoch, train, train.BACKBONE_LR) / head if train.BACKBONE_LR and head else 1.0
        return {name: decay * (1.0 if in_head(name) else backbone) for name, decay in self.decays.items()}

    def group_key(self, name):
        """Return a sortable key. It is equal for parameters that have the same factor in every epoch."""
        return self.decays[name], bool(self.train.BACKBONE_LR) and in_head(name)

    def summary(self, epochs):
        """Describe the rates in some epochs (from 0) and the layer decay in one line."""
        train = self.train

        def over_epochs(peak):
            return ", ".join(f"{learning_rate(epoch, train, peak):.6g} in epoch {epoch + 1}" for epoch in epochs)

        parts = [over_epochs(train.BASE_LR)]
        if train.BACKBONE_LR:
            parts.append(f"backbone {over_epochs(train.BACKBONE_LR)}")
        if train.LAYER_DECAY < 1:
            low, high = (pick(self.layers, key=self.layers.__getitem__) for pick in (min, max))
            ends = " to ".join(f"{self.decays[name]:.3g} x in layer {self.layers[name]}" for name in (low, high))
            parts.append(f"layer decay {train.LAYER_DECAY:g}: {ends}")
        return "; ".join(parts)
