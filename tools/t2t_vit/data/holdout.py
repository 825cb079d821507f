"""DATA.VAL_FRACTION: choose validation images in a data set without a validation split.

The path of an image below the data folder and SEED give a number in [0, 1). The image is chosen if the number is below
the fraction, so the fraction is exact only on average. Adding images does not move other images to the other split,
unless a class would otherwise have none in one of the splits.
"""

import hashlib

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import some


def held_out(paths, class_of, names, fraction, seed):
    """Choose the validation images.

    Args:
        paths: `Paths` of all images, relative to the folder of the class folders.
        class_of: int (N,), index of the class folder of each image.
        names: names of the class folders.
        fraction: fraction of each class to choose, between 0 and 1.
        seed: SEED of the config.

    Returns:
        bool (N,): at least one image of each class, and never all.

    Raises:
        UserError: some classes have fewer than 2 images; the message names them.
    """
    counts = np.bincount(class_of, minlength=len(names))
    few = [f"{names[i]} ({counts[i]})" for i in np.flatnonzero(counts < 2)]
    if few:
        raise UserError(
            f"{paths.root} has classes with fewer than 2 images, but DATA.VAL_FRACTION needs one to train on and one "
            f"to validate on: {some(few)}; add images or remove the folders"
        )
    draws = _draws(paths.names, seed)
    validates = draws < fraction
    order = np.lexsort((draws, class_of))  # by class, then by draw
    ends = np.cumsum(counts)
    validates[order[ends - counts]] = True
    validates[order[ends - 1]] = False
    return validates


def _draws(names, seed):
    """Hash the seed and each relative path, such as b"ant/0.png", to a number in [0, 1): float (N,)."""
    hasher = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    digests = []
    for name in names:
        one = hasher.copy()
        one.update(name)
        digests.append(one.digest())
    return np.frombuffer(b"".join(digests), "<u8") / 2.0**64
