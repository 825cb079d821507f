"""Training and evaluation: where the config, the models and the data meet."""
