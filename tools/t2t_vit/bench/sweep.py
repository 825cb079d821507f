"""Measure at many settings. All candidates of a setting, and the matmul limit, are timed in turn in each round."""

import contextlib
import itertools
from typing import NamedTuple

from t2t_vit.bench.counts import count
from t2t_vit.bench.machine import MatmulLimit
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import interleave, spread, summary, table
from t2t_vit.bench.samples import training_samples
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.config import with_keys

TOKEN_MODULE = "token module"
BATCH_SIZE = 16  # unless the command line sets it

# Table columns by title: functions of a row of `row_of`.
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
    "ms/image": lambda row: f"{row['milliseconds']['median'] / row['batch_size']:.1f}",
    "peak MB": lambda row: f"{row['peak_mb']:.0f}",
    "GMACs": lambda row: f"{row['gmacs']:.2f}",
    "of limit": lambda row: f"{row['share_of_limit']:.0%}",
}


class Member(NamedTuple):
    """What is measured: the `Subject` that `build(cfg, samples, *args)` makes in a process of its own."""

    cfg: object
    samples: object  # `Split` of a batch
    threads: int
    labels: dict  # added to its row
    build: object
    args: tuple = ()


def measure(args, cfgs, passes, subjects_of):
    """Rows, see `row_of`, of configs at all image sizes, batch sizes and threads of the command line.

    Args:
        args: options.
        cfgs: configs.
        passes: cost of the timed function in forward passes: 1 for inference, 3 for a training step.
        subjects_of: function of a config: list of (labels, build, args), see `Member`.
    """
    rows, cfgs = [], settings(args, cfgs)
    for cfg in cfgs:
        count(cfg)  # reports a model that cannot be built before anything is timed
    with matmul_limits(args, cfgs[0]) as limits:
        for cfg in progress_bar(cfgs, desc="measured"):
            samples, cfg = batch_of(args, cfg)
            found = subjects_of(cfg)
            members = [Member(cfg, samples, threads, *subject) for threads in args.threads for subject in found]
            rows += measure_group(members, limits, passes, args.rounds)
    return rows


def settings(args, cfgs):
    """The configs with each image size and batch size of the command line."""
    is_set = args.batch_size or "TRAIN.BATCH_SIZE" in args.opts[::2]
    return [
        with_keys(cfg, {"DATA.IMAGE_SIZE": image_size or cfg.DATA.IMAGE_SIZE, "TRAIN.BATCH_SIZE": batch_size})
        for cfg in cfgs
        for image_size, batch_size in itertools.product(
            args.image_sizes or [None], args.batch_sizes or [cfg.TRAIN.BATCH_SIZE if is_set else BATCH_SIZE]
        )
    ]


def batch_of(args, cfg):
    """(`Split` of a batch, config with its number of classes), see `training_samples`."""
    is_required = args.data_path or "DATA.PATH" in args.opts[::2]
    return training_samples(cfg, is_required, cfg.TRAIN.BATCH_SIZE)


@contextlib.contextmanager
def matmul_limits(args, cfg):
    """{threads: `Process` that measures the matmul limit} for the threads of the command line."""
    with contextlib.ExitStack() as stack:
        limits = {}
        for threads in args.threads:
            limits[threads] = stack.enter_context(Process("matrices", cfg, threads))
            limits[threads].build(MatmulLimit)
        yield limits


def measure_group(members, limits, passes, rounds):
    """Rows of `Member`s that alternate with each other and with the matmul limits of their threads."""
    with contextlib.ExitStack() as stack:
        running = {member.threads: limits[member.threads] for member in members}
        for place, (cfg, samples, threads, _, build, args) in enumerate(members):
            title = f"{cfg.NAME} at {cfg.DATA.IMAGE_SIZE} pixels in batches of {cfg.TRAIN.BATCH_SIZE}"
            running["member", place] = stack.enter_context(Process(title, cfg, threads))
            running["member", place].build(build, cfg, samples, *args)
        found = interleave({key: process.round for key, process in running.items()}, rounds)
        rows = []
        for place, member in enumerate(members):
            row = row_of(member, found["member", place], found[member.threads], passes)
            rows.append({**row, "peak_mb": running["member", place].call("memory")})
        return rows


def row_of(member, rounds, limit, passes):
    """The figures of a member: its settings, speed, multiplications, and fraction of the matmul limit.

    Args:
        rounds: {"seconds": ..., and of each part} of each round.
        limit: GFLOP/s of each round.
        passes: see `measure`.

    The fraction counts the multiplications of the whole architecture, whatever the forward pass leaves out.
    """
    cfg, limit = member.cfg, summary(limit)
    images = cfg.TRAIN.BATCH_SIZE
    rates = summary([images / each["seconds"] for each in rounds])
    gmacs = count(cfg)["token_module_gmacs" if member.labels.get("part") == TOKEN_MODULE else "gmacs"]
    parts = {part: 1000 * summary([each[part] for each in rounds])["median"] for part in rounds[0] if part != "seconds"}
    return {
        "model": cfg.NAME,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "batch_size": images,
        "threads": member.threads,
        **member.labels,
        "images_per_second": rates,
        "milliseconds": summary([1000 * each["seconds"] for each in rounds]),
        "parts": parts,
        "gmacs": gmacs,
        "limit_gflops": limit,
        "share_of_limit": 2 * passes * gmacs * rates["median"] / limit["median"],
    }


def print_rows(rows, titles, markdown):
    """Print the matmul limits and a table of `COLUMNS`; other titles are parts of the rows."""

    def cell(row, title):
        return COLUMNS[title](row) if title in COLUMNS else f"{row['parts'][title]:.0f}"

    log.info("")
    for threads in sorted({row["threads"] for row in rows}):
        values = [value for row in rows if row["threads"] == threads for value in row["limit_gflops"]["rounds"]]
        log.info("matmul limit, float32, %d thread(s): %s GFLOP/s", threads, spread(summary(values)))
    log.info("")
    for line in table(titles, [[cell(row, title) for title in titles] for row in rows], markdown):
        log.info(line)
