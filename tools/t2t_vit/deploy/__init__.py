"""Open a trained model, predict and validate with it, and export it for inference engines."""
