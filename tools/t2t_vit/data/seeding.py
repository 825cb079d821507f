"""Random generators that depend on SEED, the epoch and the sample alone.

A sample is (epoch, index of the image, number of its copy within the epoch). Workers, prefetching, resuming and what
was drawn before change nothing.
"""

import numpy as np

ORDER, TRANSFORM, REPLACEMENT, MIX, NOISE = range(1, 6)  # what a generator is for


def generator(seed, purpose, sample):
    """NumPy generator of one purpose for one sample; for ORDER the sample is (epoch,)."""
    return np.random.default_rng([seed, purpose, *sample])
