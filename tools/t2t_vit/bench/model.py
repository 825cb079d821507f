"""The size and cost of models, counted."""

from t2t_vit.bench.counts import count
from t2t_vit.bench.rounds import table
from t2t_vit.bench.sweep import settings
from t2t_vit.common.logger import log, progress_bar

HEADER = ("model", "pixels", "parameters", "trained", "weights, MB", "GMACs", "without attention", "activations, M")
NOTES = (
    "GMACs: for one image, with every token in every layer; without attention: without the two products between tokens "
    "in each backbone block.",
    "Activations: output elements of all linear layers, convolutions and products between tokens, for one image.",
)


def benchmark_model(args, cfgs):
    """Count the size and cost of the models of configs, print and return the figures."""
    rows = [
        {"model": cfg.NAME, "image_size": cfg.DATA.IMAGE_SIZE, **count(cfg)}
        for cfg in progress_bar(settings(args, cfgs), desc="counted")
    ]
    for line in ("", *table(HEADER, map(_cells, rows), args.markdown), "", *NOTES):
        log.info(line)
    return {"model": rows}


def _cells(row):
    return [
        row["model"],
        str(row["image_size"]),
        f"{row['parameters']:,}",
        f"{row['trainable_parameters']:,}",
        f"{row['weights_mb']:.1f}",
        f"{row['gmacs']:.2f}",
        f"{row['gmacs_without']:.2f}",
        f"{row['activations'] / 1e6:.2f}",
    ]
