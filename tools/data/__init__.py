"""Images on disk to batches: PIL and NumPy; paddle only where a batch becomes a tensor."""
