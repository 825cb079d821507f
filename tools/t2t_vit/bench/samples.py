"""Images to measure with."""

import dataclasses

import numpy as np

from t2t_vit.config import load_config, resolve, with_classes
from t2t_vit.data.dataset import load_data
from t2t_vit.data.paths import Paths

DIGITS = "configs/lit_data.yaml"  # its images are in the repository


def repeated(split, count):
    """Pick `count` evenly spaced images of a `Split`. Repeats images if it has fewer."""
    indices = np.linspace(0, len(split), count, endpoint=False).astype(int)
    return dataclasses.replace(split, paths=Paths.of(split.paths[i] for i in indices), labels=split.labels[indices])


def training_samples(cfg, required, count):
    """Return (`Split` of `count` training images, config with their number of classes).

    If the data folder does not exist and is not `required`, the digits of lit_data are used. The speed of a model does
    not depend on the images.
    """
    exists = required or resolve(cfg.DATA.PATH).is_dir()
    classes, splits = load_data(cfg if exists else load_config(DIGITS), ["train"])
    cfg, split = with_classes(cfg, len(classes)), splits["train"]
    if not exists:
        split = dataclasses.replace(split, labels=split.labels % cfg.MODEL.NUM_CLASSES)
    return repeated(split, count), cfg
