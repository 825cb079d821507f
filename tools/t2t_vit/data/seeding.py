"""Random generators that depend on SEED, the epoch and the sample alone.

A sample is (epoch, index of the image, number of its copy within the epoch). Earlier draws, the number of loader
processes, reading ahead and resuming therefore do not change the numbers of a generator.
"""

import numpy as np

ORDER, TRANSFORM, REPLACEMENT, MIX, NOISE = range(1, 6)  # what a generator is used for


def generator(seed, purpose, sample):
    """NumPy generator for one purpose and one sample; for ORDER the sample is (epoch,)."""
    return np.random.default_rng([seed, purpose, *sample])
