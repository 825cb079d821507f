"""Which images of a data set without a validation split validate: a share of each class, by a hash of the file's name.

Whether an image validates depends on its own name and SEED alone, so that pictures that are added later move none of
the others, wherever the folder lies and whichever process asks. A share of 0.2 is therefore met on
average, not exactly.
"""

import hashlib
import os

import numpy as np

from t2t_vit.common.errors import UserError


def held_out(paths, class_of, names, folder, share, seed):
    """Which images validate.

    Args:
        paths: `Paths` of all images below `folder`.
        class_of: int (N,), class folder of each.
        names: of the class folders.
        folder: that holds the class folders.
        share: of each class, between 0 and 1.
        seed: SEED of the config.

    Returns:
        bool (N,): at least one image of each class, and never all.

    Raises:
        UserError: naming classes with fewer than 2 images.
    """
    counts = np.bincount(class_of, minlength=len(names))
    few = [f"{names[i]} ({counts[i]})" for i in np.flatnonzero(counts < 2)]
    if few:
        shown = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        raise UserError(
            f"{folder} has classes with fewer than the 2 images that DATA.VAL_FRACTION needs, one to train and one to "
            f"validate on: {shown}; add some, or take the folder away"
        )
    draws = _draws(paths, folder, seed)
    validates = draws < share
    order = np.lexsort((draws, class_of))  # by class, then by draw
    ends = np.cumsum(counts)
    validates[order[ends - counts]] = True
    validates[order[ends - 1]] = False
    return validates


def _draws(paths, folder, seed):
    """float (N,): a number from 0 to below 1 for each path relative to `folder`, like "ant/0.png", and the seed."""
    hasher = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    prefixes = [os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/")) + b"/" for path in paths.folders]
    digests, start = [], 0
    for prefix, end in zip(map(prefixes.__getitem__, paths.folder_of.tolist()), paths.ends.tolist()):
        one = hasher.copy()
        one.update(prefix + paths.names[start:end])
        digests.append(one.digest())
        start = end
    return np.frombuffer(b"".join(digests), "<u8") / 2.0**64
