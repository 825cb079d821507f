"""The size and cost of models, counted; their memory, measured."""

from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import table
from t2t_vit.bench.sweep import batch_of, settings
from t2t_vit.bench.train import TrainingSubject
from t2t_vit.common.logger import log, progress_bar

HEADER = ("model", "pixels", "parameters", "trained", "weights, MB", "GMACs", "without attention", "activations, M")
MEMORY = {"batch_size": "batch", "inference_mb": "inference, MB", "training_mb": "training, MB"}
NOTES = (
    "GMACs: of one image, every token through every layer; without attention: without the two products between tokens "
    "of the backbone's blocks.",
    "Activations: elements that linear layers, convolutions and products between tokens put out for one image.",
)


def benchmark_model(args, cfgs):
    """Count the size and cost of the models of configs, with --memory measure it, print and return the figures."""
    rows = []
    for cfg in progress_bar(settings(args, cfgs), desc="counted"):
        rows.append({"model": cfg.NAME, "image_size": cfg.DATA.IMAGE_SIZE, **count(cfg)})
        if args.memory:
            rows[-1] |= measure_memory(args, cfg)
    header = (*HEADER, *(MEMORY.values() if args.memory else ()))
    for line in ("", *table(header, map(_cells, rows), args.markdown), "", *NOTES):
        log.info(line)
    return {"model": rows}


def measure_memory(args, cfg):
    """Peak MB of inference and of training, each in a new process, above what it had before building anything."""
    samples, cfg = batch_of(args, cfg)
    peaks = {"batch_size": cfg.TRAIN.BATCH_SIZE}
    for key, build in (("inference_mb", eager), ("training_mb", TrainingSubject)):
        with Process(f"the memory of {cfg.NAME}", cfg, args.threads[0]) as process:
            process.build(build, cfg, samples)
            peaks[key] = process.call("memory")
    return peaks


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
        *(f"{row[key]:.0f}" for key in MEMORY if key in row),
    ]
