"""Answer HTTP requests with a model: address, checks of the sender, batches, the API. The page shares the first two."""
