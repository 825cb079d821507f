"""Model families: PaddlePaddle layers, independent of configs, paths and ranks."""
