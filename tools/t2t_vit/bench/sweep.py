"""Measure models at many settings. Each round times everything that is compared, in turn."""

import contextlib
import functools
import itertools
import tempfile
from typing import NamedTuple

from t2t_vit.bench.counts import count
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import interleave, spread, summary, table
from t2t_vit.bench.samples import training_samples
from t2t_vit.common.errors import counted
from t2t_vit.common.logger import log
from t2t_vit.config import with_keys

TOKEN_MODULE = "token module"
BATCH_SIZE = 16  # default, if the command line sets none
BASELINE = "pytorch"  # choice of --baseline, and the engine of its rows
PADDLE = "t2t_vit.bench.subject"

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
    "ms for 1": lambda row: f"{row['milliseconds_of_one']:.1f}",
    "peak MB": lambda row: f"{row['peak_mb']:.0f}",
    "GMACs": lambda row: f"{row['gmacs']:.2f}",
    "of limit": lambda row: f"{row['share_of_limit']:.0%}",
    "of PyTorch": lambda row: f"{row['ratio']['median']:.2f}",
}


class Subject(NamedTuple):
    """What a process times, with one number of threads."""

    labels: dict  # of its row
    args: tuple  # of `build` of its module
    module: str = PADDLE  # has `build` and `time_round`; its process imports Paddle only if it is this one


def measure(report, name, args, cfgs, passes, subjects_of):
    """Measure configs at all image sizes, batch sizes and threads of the command line. Returns rows of `row_of`.

    Args:
        report: `Report`. Its list `name` gets the rows of all configs.
        args: options.
        cfgs: configs.
        passes: cost of the timed function in forward passes: 1 for inference, 3 for a training step.
        subjects_of: function of (config, `Split` with a batch of images, empty folder for files) that returns a list of
            `Subject`.
    """
    cfgs = settings(args, cfgs)
    is_required = args.data_path or "DATA.PATH" in args.opts[::2]
    for cfg in cfgs:
        count(cfg)  # fails before anything is timed if a model cannot be built

    def measured(cfg):
        samples, cfg = training_samples(cfg, is_required, cfg.TRAIN.BATCH_SIZE)
        with tempfile.TemporaryDirectory() as folder:
            return measure_in_turn(args, cfg, passes, subjects_of(cfg, samples, folder))

    return report.measure(name, {title_of(cfg): cfg for cfg in cfgs}, measured)


def name_of(cfg):
    return cfg.NAME if cfg.NAME == cfg.MODEL.NAME else f"{cfg.NAME} ({cfg.MODEL.NAME})"


def title_of(cfg):
    return f"{name_of(cfg)} at {cfg.DATA.IMAGE_SIZE} pixels in batches of {cfg.TRAIN.BATCH_SIZE}"


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


def measure_in_turn(args, cfg, passes, subjects):
    """Time the subjects of a config in turn, with all numbers of threads. Returns their rows."""
    rows, functions = [], {}
    with contextlib.ExitStack() as stack:
        for threads, (labels, words, module) in itertools.product(args.threads, subjects):
            paddle_cfg = cfg if module == PADDLE else None
            process = stack.enter_context(Process(title_of(cfg), paddle_cfg, threads))
            peak_mb = process.run(f"{module}:build", *words)
            functions[len(rows)] = functools.partial(process.run, f"{module}:time_round")
            rows.append({"threads": threads, **labels, "peak_mb": peak_mb})
        found = interleave(functions, args.rounds)
    limits: dict = {}  # {threads: speeds of the matrix product in all rounds}
    for place, row in enumerate(rows):
        speeds = (each.pop("gflops") for each in found[place] if "gflops" in each)
        limits.setdefault(row["threads"], []).extend(speeds)
    figures = [row_of(cfg, row, found[place], limits[row["threads"]], passes) for place, row in enumerate(rows)]
    return with_ratios(figures)


def with_ratios(rows):
    """Add to the rows of a config their speed relative to the baseline in float32, if that was measured with them."""
    wanted = (BASELINE, "fp32")
    found = [row for row in rows if (row.get("engine"), row.get("precision")) == wanted]
    baseline = {row["threads"]: row["milliseconds"]["rounds"] for row in found}
    for row in rows if baseline else ():
        pairs = zip(baseline[row["threads"]], row["milliseconds"]["rounds"])
        row["ratio"] = summary([theirs / own for theirs, own in pairs])
    return rows


def row_of(cfg, labels, rounds, limits, passes):
    """Summarize one subject: settings, speed, MACs, and fraction of the matmul limit.

    Args:
        cfg: config of the subject.
        labels: {"threads", ...}
        rounds: for each round, {"seconds": ..., and the seconds of each part}.
        limits: speeds of the matrix product, in GFLOP/s.
        passes: see `measure`.

    The fraction counts the MACs of the whole architecture, even those that the forward pass skips.
    """
    columns = {key: [each[key] for each in rounds] for key in rounds[0]}
    seconds, limit = columns.pop("seconds"), summary(limits)
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
    """Print the matmul limits and a table. A title that is not in `COLUMNS` names a part of the step.

    A figure that a row does not have is "-"; a column without figures is left out.
    """

    def cell(row, title):
        with contextlib.suppress(KeyError):
            return COLUMNS[title](row) if title in COLUMNS else f"{row['parts'][title]:.0f}"
        return "-"

    titles = [title for title in titles if any(cell(row, title) != "-" for row in rows)]
    log.info("")
    for threads in sorted({row["threads"] for row in rows}):
        values = [value for row in rows if row["threads"] == threads for value in row["limit_gflops"]["rounds"]]
        log.info("matmul limit, float32, %s: %s GFLOP/s", counted(threads, "thread"), spread(summary(values)))
    log.info("")
    for line in table(titles, [[cell(row, title) for title in titles] for row in rows], markdown):
        log.info(line)
