"""Pictures to measure with."""

import dataclasses
from pathlib import Path

import numpy as np

from t2t_vit.common.errors import one_line
from t2t_vit.config import load_config, resolve, with_classes
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import ImageError
from t2t_vit.data.paths import Paths

DIGITS = "configs/lit_data.yaml"  # whose pictures are part of the repository


def choose_pictures(splits, count):
    """A `Split` of `count` images: evenly from all training images, with those of val and repeated if they are few."""
    train, val = splits["train"], splits["val"]
    if len(train) >= count:
        return picked(train, spread_indices(train, count))
    both = dataclasses.replace(
        train, paths=[*train.paths, *val.paths], labels=np.concatenate([train.labels, val.labels])
    )
    return repeated(both, count)


def picked(split, indices):
    """The images of a `Split` at some indices."""
    return dataclasses.replace(split, paths=Paths.of(split.paths[i] for i in indices), labels=split.labels[indices])


def spread_indices(split, count):
    """`count` indices spread evenly over a `Split`."""
    return np.linspace(0, len(split), count, endpoint=False).astype(int)


def repeated(split, count):
    """The images of a `Split` again and again, `count` in all."""
    return picked(split, np.arange(count) % len(split))


def read_all(paths):
    """Read the files, so that what is timed after it finds them in memory."""
    for path in dict.fromkeys(paths):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"image {one_line(error)}") from None


def training_pictures(cfg, required, count):
    """(`Split` of `count` images, config with its number of classes): training images of a config's data.

    Where there is no such data folder and it is not `required`, the shipped digits: how fast a model is does not depend
    on what it looks at.
    """
    own = required or resolve(cfg.DATA.PATH).is_dir()
    classes, splits = load_data(cfg if own else load_config(DIGITS), ["train"])
    cfg, split = with_classes(cfg, len(classes)), splits["train"]
    if not own:
        split = dataclasses.replace(split, labels=split.labels % cfg.MODEL.NUM_CLASSES)
    return repeated(picked(split, spread_indices(split, min(count, len(split)))), count), cfg
