"""Model families: PaddlePaddle layers that know no config, path or rank."""
