"""The size and cost of models, counted."""

from t2t_vit.bench.counts import count
from t2t_vit.bench.operations import count_operations
from t2t_vit.bench.rounds import table
from t2t_vit.bench.sweep import settings
from t2t_vit.common.logger import log, progress_bar

HEADER = ("model", "pixels", "parameters", "trained", "weights, MB", "GMACs", "without attention", "activations, M")
OPERATIONS = ("operations of a training step", "pixels", "forward and backward", "update")
OPERATIONS_NOTE = "Operations that a GPU would get in float32, counted on the CPU, at any batch size."
NOTES = (
    "GMACs: for one image, with every token in every layer; without attention: without the two products between tokens "
    "in each backbone block.",
    "Activations: output elements of all linear layers, convolutions and products between tokens, for one image.",
)


def benchmark_model(args, cfgs, report):
    """Count the size and cost of the models of configs, and print the figures."""
    rows = report.content["model"] = [
        {"model": cfg.NAME, "image_size": cfg.DATA.IMAGE_SIZE, **count(cfg)}
        for cfg in progress_bar(settings(args, cfgs), desc="counted")
    ]
    for line in ("", *table(HEADER, map(_cells, rows), args.markdown), "", *NOTES):
        log.info(line)
    if args.operations:
        for row, cfg in zip(rows, progress_bar(settings(args, cfgs), desc="counted")):
            row["operations"] = count_operations(cfg)
        cells = [[row["model"], str(row["image_size"]), *map(str, row["operations"].values())] for row in rows]
        for line in ("", *table(OPERATIONS, cells, args.markdown), "", OPERATIONS_NOTE):
            log.info(line)


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
