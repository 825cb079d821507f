"""What visualize.py draws: a module for each picture, which has `parser()` and `main(args, cfg)`."""
