"""Random generators that depend on SEED, the epoch and the sample alone.

A sample is (epoch, index of the image, number of its copy within the epoch). Earlier draws, loader processes, reading
ahead and resuming do not change what a generator draws.
"""

import numpy as np

ORDER, TRANSFORM, REPLACEMENT, MIX, NOISE = range(1, 6)  # purposes of a generator


def generator(seed, purpose, sample):
    """NumPy generator for one purpose and one sample; for ORDER the sample is (epoch,)."""
    return np.random.default_rng([seed, purpose, *sample])
