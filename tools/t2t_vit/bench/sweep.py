"""Measuring configs at many settings: what is measured at one setting takes turns, the machine's limit among it."""

import contextlib
import itertools
from typing import NamedTuple

from t2t_vit.bench.counts import count
from t2t_vit.bench.machine import MatmulLimit
from t2t_vit.bench.pictures import training_pictures
from t2t_vit.bench.process import Subject, closing
from t2t_vit.bench.rounds import interleave, spread, summary
from t2t_vit.common.logger import progress_bar
from t2t_vit.config import with_keys

TOKEN_MODULE = "token module"  # label of the T2T module alone
BATCH_SIZE = 16  # where the command line has none
SETTINGS = {"model": "model", "image_size": "pixels", "batch_size": "batch", "threads": "threads"}  # column titles


class Member(NamedTuple):
    """One thing that takes turns: built of its arguments in a process with so many threads, as `Subject` says."""

    cfg: object
    threads: int
    labels: dict  # what tells it from the others with the same config and threads
    build: object
    args: tuple


def measure_points(args, cfgs, passes, members):
    """Figures of each thing measured, one dict for each.

    Args:
        args: of the command line.
        cfgs: configs.
        passes: multiplications of what is timed, in units of a forward pass.
        members: function (cfg, pictures) -> (labels, build, its arguments) of what is measured at one setting.
    """
    rows, settings = [], [some_pictures(args, cfg) for cfg in points(args, cfgs)]
    for _, cfg in settings:
        count(cfg)  # a model that cannot be built is told before anything is timed
    with matmul_limits(args, cfgs[0]) as limits:
        for pictures, cfg in progress_bar(settings, desc="measured"):
            found = list(members(cfg, pictures))
            found = [Member(cfg, threads, *member) for threads in args.threads for member in found]
            rows += measure_together(found, limits, passes, args.rounds)
    return rows


@contextlib.contextmanager
def matmul_limits(args, cfg):
    """{threads: `Subject` that measures the matmul limit} at the numbers of threads of the command line."""
    with closing({}) as limits:
        for threads in args.threads:
            limits[threads] = Subject(MatmulLimit, title="matrices", cfg=cfg, threads=threads)
        yield limits


def measure_together(members, limits, passes, rounds):
    """Figures of `Member`s that take turns with each other and with the matmul limits."""
    rows = []
    with closing({}) as subjects:
        for place, (cfg, threads, _, build, args) in enumerate(members):
            title = f"{cfg.NAME} at {cfg.DATA.IMAGE_SIZE} pixels in batches of {cfg.TRAIN.BATCH_SIZE}"
            subjects["member", place] = Subject(build, *args, title=title, cfg=cfg, threads=threads)
        turns = interleave({**limits, **subjects}, rounds)
        for member, (key, subject) in zip(members, subjects.items()):
            figures = described(member, turns[key], turns[member.threads], passes)
            rows.append({**figures, "peak_mb": subject("memory")})
    return rows


def points(args, cfgs):
    """The configs at each image size and batch size of the command line."""
    return [
        with_keys(cfg, {"DATA.IMAGE_SIZE": image_size or cfg.DATA.IMAGE_SIZE, "TRAIN.BATCH_SIZE": batch_size})
        for cfg in cfgs
        for image_size, batch_size in itertools.product(args.image_sizes or [None], batch_sizes(args, cfg))
    ]


def batch_sizes(args, cfg):
    """Those of the command line, whatever the config has."""
    if args.batch_sizes:
        return args.batch_sizes
    named = args.batch_size or "TRAIN.BATCH_SIZE" in args.opts[::2]
    return [cfg.TRAIN.BATCH_SIZE if named else BATCH_SIZE]


def some_pictures(args, cfg):
    """A batch of `training_pictures`; those of a folder that the command line names must be there."""
    named = args.data_path or "DATA.PATH" in args.opts[::2]
    return training_pictures(cfg, named, cfg.TRAIN.BATCH_SIZE)


def described(member, rounds, limit, passes):
    """What the rounds of a member, dicts of seconds, and of the matmul limit, in GFLOP/s, say.

    The share of the limit is that of the multiplications which the architecture stands for, whatever the forward pass
    leaves out.
    """
    cfg, labels, limit = member.cfg, member.labels, summary(limit)
    images = cfg.TRAIN.BATCH_SIZE
    rates = summary([images / each["seconds"] for each in rounds])
    gmacs = count(cfg)["token_module_gmacs" if labels.get("part") == TOKEN_MODULE else "gmacs"]
    parts = {part: 1000 * summary([each[part] for each in rounds])["median"] for part in rounds[0] if part != "seconds"}
    return {
        "model": cfg.NAME,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "batch_size": images,
        "threads": member.threads,
        **labels,
        "images_per_second": rates,
        "milliseconds": summary([1000 * each["seconds"] for each in rounds]),
        "parts": parts,
        "gmacs": gmacs,
        "limit_gflops": limit,
        "share_of_limit": 2 * passes * gmacs * rates["median"] / limit["median"],
    }


def setting_cells(row, extra=()):
    """Cells of a table that say what a row measured, under `SETTINGS` and the `extra` keys."""
    return [str(row[key]) for key in (*SETTINGS, *extra)]


def limit_lines(rows):
    """The matmul limit that the rows are held to, at each number of threads."""
    for threads in sorted({row["threads"] for row in rows}):
        values = [value for row in rows if row["threads"] == threads for value in row["limit_gflops"]["rounds"]]
        yield f"matmul limit, float32, {threads} thread(s): {spread(summary(values))} GFLOP/s"
