"""Measure models at many settings. Each round times everything that is compared, in turn."""

import contextlib
import functools
import itertools

from t2t_vit.bench import subject
from t2t_vit.bench.counts import count
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import interleave, spread, summary, table
from t2t_vit.bench.samples import training_samples
from t2t_vit.common.errors import counted
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.config import with_keys

TOKEN_MODULE = "token module"
BATCH_SIZE = 16  # default, if the command line sets none

# {column title: function that formats a row of `row_of`}
COLUMNS = {
    "model": lambda row: row["model"],
    "pixels": lambda row: str(row["image_size"]),
    "batch": lambda row: str(row["batch_size"]),
    "threads": lambda row: str(row["threads"]),
    "engine": lambda row: row["engine"],
    "precision": lambda row: row["precision"],
    "part": lambda row: row["part"],
    "tokens": lambda row: str(row["tokens"]),
    "images/s": lambda row: spread(row["images_per_second"]),
    "ms/step": lambda row: f"{row['milliseconds']['median']:.0f}",
    "ms/batch": lambda row: f"{row['milliseconds']['median']:.1f}",
    "peak MB": lambda row: f"{row['peak_mb']:.0f}",
    "GMACs": lambda row: f"{row['gmacs']:.2f}",
    "of limit": lambda row: f"{row['share_of_limit']:.0%}",
}


def measure(args, cfgs, passes, subjects_of):
    """Measure configs at all image sizes, batch sizes and threads of the command line. Returns rows of `row_of`.

    Args:
        args: options.
        cfgs: configs.
        passes: cost of the timed function in forward passes: 1 for inference, 3 for a training step.
        subjects_of: function of a config that returns a list of (labels of the row, make, args). In its own process,
            `make(cfg, samples, *args)` builds the function that computes one batch, see `subject.build`.
    """
    rows, cfgs = [], settings(args, cfgs)
    is_required = args.data_path or "DATA.PATH" in args.opts[::2]
    for cfg in cfgs:
        count(cfg)  # fails before anything is timed if a model cannot be built
    for cfg in progress_bar(cfgs, desc="measured"):
        samples, cfg = training_samples(cfg, is_required, cfg.TRAIN.BATCH_SIZE)
        rows += measure_in_turn(args, cfg, samples, passes, subjects_of(cfg))
    return rows


def settings(args, cfgs):
    """Combine the configs with all image sizes and batch sizes of the command line. Returns a list of configs."""
    is_set = args.batch_size or "TRAIN.BATCH_SIZE" in args.opts[::2]
    return [
        with_keys(cfg, {"DATA.IMAGE_SIZE": image_size or cfg.DATA.IMAGE_SIZE, "TRAIN.BATCH_SIZE": batch_size})
        for cfg in cfgs
        for image_size, batch_size in itertools.product(
            args.image_sizes or [None], args.batch_sizes or [cfg.TRAIN.BATCH_SIZE if is_set else BATCH_SIZE]
        )
    ]


def measure_in_turn(args, cfg, samples, passes, subjects):
    """Time the subjects of a config in turn, with all numbers of threads. Returns their rows."""
    title = f"{cfg.NAME} at {cfg.DATA.IMAGE_SIZE} pixels in batches of {cfg.TRAIN.BATCH_SIZE}"
    rows, functions = [], {}
    with contextlib.ExitStack() as stack:
        for threads, (labels, make, words) in itertools.product(args.threads, subjects):
            process = stack.enter_context(Process(title, cfg, threads))
            peak_mb = process.run(subject.build, make, cfg, samples, *words)
            functions[len(rows)] = functools.partial(process.run, subject.time_round)
            rows.append({"threads": threads, **labels, "peak_mb": peak_mb})
        found = interleave(functions, args.rounds)
    return [row_of(cfg, row, found[place], passes) for place, row in enumerate(rows)]


def row_of(cfg, labels, rounds, passes):
    """Summarize one subject: settings, speed, MACs, and fraction of the matmul limit.

    Args:
        cfg: config of the subject.
        labels: {"threads", ...}
        rounds: for each round, {"seconds": ..., "gflops": ..., and the seconds of each part}.
        passes: see `measure`.

    The fraction counts the MACs of the whole architecture, even those that the forward pass skips.
    """
    columns = {key: [each[key] for each in rounds] for key in rounds[0]}
    seconds, limit = columns.pop("seconds"), summary(columns.pop("gflops"))
    images, counts = cfg.TRAIN.BATCH_SIZE, count(cfg)
    rates = summary([images / each for each in seconds])
    gmacs = counts["token_module_gmacs" if labels.get("part") == TOKEN_MODULE else "gmacs"]
    return {
        "model": cfg.NAME,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "batch_size": images,
        "tokens": counts["tokens"],
        **labels,
        "images_per_second": rates,
        "milliseconds": summary([1000 * each for each in seconds]),
        "parts": {part: 1000 * summary(values)["median"] for part, values in columns.items()},
        "gmacs": gmacs,
        "limit_gflops": limit,
        "share_of_limit": 2 * passes * gmacs * rates["median"] / limit["median"],
    }


def print_rows(rows, titles, markdown):
    """Print the matmul limits and a table. A title that is not in `COLUMNS` names a part of the step."""

    def cell(row, title):
        return COLUMNS[title](row) if title in COLUMNS else f"{row['parts'][title]:.0f}"

    log.info("")
    for threads in sorted({row["threads"] for row in rows}):
        values = [value for row in rows if row["threads"] == threads for value in row["limit_gflops"]["rounds"]]
        log.info("matmul limit, float32, %s: %s GFLOP/s", counted(threads, "thread"), spread(summary(values)))
    log.info("")
    for line in table(titles, [[cell(row, title) for title in titles] for row in rows], markdown):
        log.info(line)
