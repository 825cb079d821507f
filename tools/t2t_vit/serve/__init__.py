"""Answer HTTP requests with a model, and what the page has in common with that: address, checks of the sender."""
