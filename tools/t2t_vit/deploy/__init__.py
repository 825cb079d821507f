"""From a trained model to a file that runs anywhere, and its engines."""
