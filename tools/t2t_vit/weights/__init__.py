"""Files of weights, from this and other programs: recognised, downloaded, read safely and loaded into a model."""
