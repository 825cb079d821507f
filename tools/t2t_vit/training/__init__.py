"""Training and validation of the model of a config."""
