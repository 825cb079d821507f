"""What a model holds and costs, counted; its memory, measured."""

from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager
from t2t_vit.bench.process import Subject, closing
from t2t_vit.bench.rounds import table
from t2t_vit.bench.sweep import points, some_pictures
from t2t_vit.bench.train import Training
from t2t_vit.common.logger import log, progress_bar

HEADER = ("model", "pixels", "parameters", "trained", "weights, MB", "GMACs", "without attention", "activations, M")
NOTES = (
    "GMACs: of one image, every token through every layer; without attention: without the two products between tokens "
    "of the backbone's blocks.",
    "Activations: elements that linear layers, convolutions and products between tokens put out for one image.",
)


def benchmark_model(args, cfgs):
    """Count what the models of configs hold and cost, with --memory measure that, print and return the figures."""
    rows = []
    for cfg in progress_bar(points(args, cfgs), desc="counted"):
        rows.append({"model": cfg.NAME, "image_size": cfg.DATA.IMAGE_SIZE, **count(cfg)})
        if args.memory:
            rows[-1] |= measure_memory(args, cfg)
    for line in ("", *table(*table_of(rows), args.markdown), "", *NOTES):
        log.info(line)
    return {"model": rows}


def measure_memory(args, cfg):
    """Peak MB of inference and of training, each in a fresh process, above what that had before building anything."""
    pictures, cfg = some_pictures(args, cfg)
    peaks = {"batch_size": cfg.TRAIN.BATCH_SIZE}
    for what, build in (("inference_mb", eager), ("training_mb", Training)):
        with closing({}) as subjects:
            subjects[what] = Subject(
                build, cfg, pictures, title=f"the memory of {cfg.NAME}", cfg=cfg, threads=args.threads[0]
            )
            peaks[what] = subjects[what]("memory")
    return peaks


def table_of(rows):
    """(header, rows) of a table."""
    header, cells = [*HEADER], [
        [
            row["model"],
            str(row["image_size"]),
            f"{row['parameters']:,}",
            f"{row['trainable_parameters']:,}",
            f"{row['weights_mb']:.1f}",
            f"{row['gmacs']:.2f}",
            f"{row['gmacs_without']:.2f}",
            f"{row['activations'] / 1e6:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    if "training_mb" in rows[0]:
        header += ["batch", "inference, MB", "training, MB"]
        for row, line in zip(rows, cells):
            line += [f"{row[key]:.0f}" for key in ("batch_size", "inference_mb", "training_mb")]
    return header, cells
