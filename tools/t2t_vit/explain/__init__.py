"""Where a model looks, and what its layers make of an image."""
