"""What tools/visualize.py draws: a module for each picture, with the sheets and the options that they share."""
