"""What tools/benchmark.py measures; each module has its measurements and the lines that tell them."""
