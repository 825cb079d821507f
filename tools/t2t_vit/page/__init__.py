"""The web page of demo.py: the models that answer, what it shows, how it is served."""
