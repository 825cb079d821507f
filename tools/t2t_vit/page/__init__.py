"""The web page of demo.py: models, layout, server."""
