"""How cost grows with the image size, the batch size and the threads.

The T2T module's grows with the tokens where it is a performer, nearly with their square where it is a transformer.
"""

import math

from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager
from t2t_vit.bench.plot import draw
from t2t_vit.bench.rounds import spread, table
from t2t_vit.bench.sweep import TOKEN_MODULE, Member, matmul_limits, measure_together, some_pictures
from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import check_suffix, require_matplotlib
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.config import with_keys

IMAGE_SIZES = (224, 288, 384, 448, 512)
BATCH_SIZES = (1, 2, 4, 8, 16)
HEADER = ("model", "part", "pixels", "tokens", "batch", "threads", "ms/image", "images/s", "GMACs")


def benchmark_growth(args, cfgs):
    """Measure how the inference of T2T-ViTs grows, print, draw and return it.

    Images of growing size one by one, the whole model and its T2T module alone; growing batches, and threads, at the
    config's size.
    """
    for cfg in cfgs:
        if not count(cfg)["token_module_gmacs"]:
            raise UserError(f"MODEL.NAME {cfg.MODEL.NAME}: growth is for the T2T module, which a PiT has not")
    check_suffix(args.plot, "--plot")
    require_matplotlib()
    most = args.threads[-1:]
    sweeps = {
        "image_size": [(size, 1, most) for size in args.image_sizes or IMAGE_SIZES],
        "batch_size": [(None, batch_size, most) for batch_size in args.batch_sizes or BATCH_SIZES],
        "threads": [(None, (args.batch_sizes or BATCH_SIZES)[-1], args.threads)],
    }
    with matmul_limits(args, cfgs[0]) as limits:
        rows = {name: measure_sweep(args, cfgs, points, limits, name) for name, points in sweeps.items()}
    exponents = fit_exponents(rows["image_size"])
    for line in growth_lines(rows, exponents, args.markdown):
        log.info(line)
    draw(rows, exponents, args.plot)
    return {**{f"growth_{name}": part for name, part in rows.items()}, "exponents": exponents}


def measure_sweep(args, cfgs, points, limits, name):
    """Rows of all configs at each (image size or None, batch size, threads)."""
    rows = []
    for image_size, batch_size, threads in progress_bar(points, desc=name):
        members = []
        for cfg in cfgs:
            size = image_size or cfg.DATA.IMAGE_SIZE
            cfg = with_keys(cfg, {"DATA.IMAGE_SIZE": size, "TRAIN.BATCH_SIZE": batch_size})
            pictures, cfg = some_pictures(args, cfg)
            members += [Member(cfg, number, {"part": "model"}, eager, (cfg, pictures)) for number in threads]
            if name == "image_size":
                members.append(Member(cfg, threads[0], {"part": TOKEN_MODULE}, eager, (cfg, pictures, True)))
        found = measure_together(members, {number: limits[number] for number in threads}, 1, args.rounds)
        rows += [{**row, "tokens": count(member.cfg)["tokens"]} for member, row in zip(members, found)]
    return rows


def fit_exponents(rows):
    """{model: exponents of the tokens in the T2T module's time and in its multiplications}.

    The time is that of the fastest rounds, which other work on the machine disturbs least.
    """
    exponents = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        module = [row for row in rows if row["model"] == model and row["part"] == TOKEN_MODULE]
        tokens = [row["tokens"] for row in module]
        if len(set(tokens)) > 1:
            exponents[model] = {
                "time": exponent(tokens, [row["milliseconds"]["lowest"] for row in module]),
                "macs": exponent(tokens, [row["gmacs"] for row in module]),
            }
    return exponents


def exponent(sizes, costs):
    """p of the least-squares fit cost = c * size ** p, in logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    return products / sum((a - mean_x) ** 2 for a in x)


TITLES = {
    "image_size": "images of growing size, one by one",
    "batch_size": "batches of growing size",
    "threads": "more threads",
}


def growth_lines(rows, exponents, markdown):
    for name, part in rows.items():
        yield from ("", f"{TITLES[name]}:", "", *table(HEADER, map(_cells, part), markdown))
    yield ""
    for model, found in exponents.items():
        yield (
            f"{model}: the T2T module's time (of the fastest rounds) grows with the tokens to the power of "
            f"{found['time']:.2f}, its multiplications to that of {found['macs']:.2f}"
        )


def _cells(row):
    return [
        row["model"],
        row["part"],
        *(str(row[key]) for key in ("image_size", "tokens", "batch_size", "threads")),
        f"{row['milliseconds']['median'] / row['batch_size']:.1f}",
        spread(row["images_per_second"]),
        f"{row['gmacs']:.2f}",
    ]
