"""Learning rate as a pure function of the epoch, so that a resumed run cannot be off by one."""

import math


def learning_rate(epoch, train, peak=None):
    """Learning rate of a whole epoch, as T2T-ViT's main.py has it from timm 0.3.4's CosineLRScheduler.

    Warm-up rises linearly from WARMUP_LR (all of epoch 0) towards BASE_LR; the cosine counts from epoch 0 too, so the
    first epoch after the warm-up is already a little below BASE_LR; then COOLDOWN_EPOCHS at MIN_LR.

    Args:
        epoch: from 0.
        train: the TRAIN section of the config.
        peak: what stands in for BASE_LR where a part of the model has its own.
    """
    peak = train.BASE_LR if peak is None else peak
    if epoch < train.WARMUP_EPOCHS:
        return train.WARMUP_LR + epoch * (peak - train.WARMUP_LR) / train.WARMUP_EPOCHS
    if epoch < train.EPOCHS:
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / train.EPOCHS))
        return train.MIN_LR + (peak - train.MIN_LR) * cosine
    return train.MIN_LR


def total_epochs(train):
    """Epochs of the whole run, cooldown included."""
    return train.EPOCHS + train.COOLDOWN_EPOCHS
