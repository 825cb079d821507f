"""What visualize.py draws: a module for each picture, which has `parser()` and `main(args, cfg)`.

One with READS_CONFIG = False has `main(args)`, and a parser of its own altogether.
"""
