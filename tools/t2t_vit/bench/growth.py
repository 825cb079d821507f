"""How the cost of inference grows with the image size, the batch size and the threads.

The time of the T2T module grows with the tokens if it is a performer, nearly with their square if it is a transformer.
"""

import numpy as np

from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager
from t2t_vit.bench.sweep import TOKEN_MODULE, Member, batch_of, matmul_limits, measure_group, print_rows
from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import check_suffix, figure_to, require_matplotlib
from t2t_vit.common.logger import log, progress_bar
from t2t_vit.config import with_keys

TITLES = ("model", "part", "pixels", "tokens", "batch", "threads", "ms/image", "images/s", "GMACs")


def benchmark_growth(args, cfgs):
    """Measure how the inference of T2T-ViTs grows, print, draw and return the figures.

    With the image size: one image at a time, the whole model and its T2T module alone. With the batch size and the
    threads: the whole model at the config's image size.
    """
    for cfg in cfgs:
        if not count(cfg)["token_module_gmacs"]:
            raise UserError(f"MODEL.NAME {cfg.MODEL.NAME}: growth needs a T2T module, and a PiT has none")
    check_suffix(args.plot, "--plot")
    require_matplotlib()
    most = args.threads[-1:]
    sweeps = {
        "image_size": [(size, 1, most) for size in args.image_sizes],
        "batch_size": [(None, size, most) for size in args.batch_sizes],
        "threads": [(None, args.batch_sizes[-1], args.threads)],
    }
    with matmul_limits(args, cfgs[0]) as limits:
        rows = {name: measure_sweep(args, cfgs, points, limits, name) for name, points in sweeps.items()}
    print_rows([row for part in rows.values() for row in part], TITLES, args.markdown)
    exponents = fit_exponents(rows["image_size"])
    for model, found in exponents.items():
        log.info(
            "%s: the T2T module's time (of the fastest rounds) grows with the tokens to the power of %.2f, its "
            "multiplications to that of %.2f", model, found["time"], found["macs"],
        )  # fmt: skip
    with figure_to(args.plot, (13, 4.2)) as figure:
        draw(figure.subplots(1, 3), rows, exponents)
    return {**{f"growth_{name}": part for name, part in rows.items()}, "exponents": exponents}


def measure_sweep(args, cfgs, points, limits, name):
    """Rows of all configs at each (image size or None, batch size, threads)."""
    rows = []
    for image_size, batch_size, threads in progress_bar(points, desc=name):
        members = []
        for cfg in cfgs:
            size = image_size or cfg.DATA.IMAGE_SIZE
            samples, cfg = batch_of(args, with_keys(cfg, {"DATA.IMAGE_SIZE": size, "TRAIN.BATCH_SIZE": batch_size}))
            members += [Member(cfg, samples, number, {"part": "model"}, eager) for number in threads]
            if name == "image_size":
                members.append(Member(cfg, samples, threads[0], {"part": TOKEN_MODULE}, eager, (True,)))
        found = measure_group(members, limits, 1, args.rounds)
        rows += [{**row, "tokens": count(member.cfg)["tokens"]} for member, row in zip(members, found)]
    return rows


def fit_exponents(rows):
    """{model: {"time", "macs": p}}: the T2T module's cost grows as tokens ** p, by least squares of the logarithms.

    The times are those of the fastest rounds, which other work on the machine disturbs least.
    """
    exponents = {}
    for (model, part), line in _lines(rows).items():
        tokens = np.log([row["tokens"] for row in line])
        if part == TOKEN_MODULE and len(set(tokens)) > 1:
            costs = {"time": [row["milliseconds"]["lowest"] for row in line], "macs": [row["gmacs"] for row in line]}
            exponents[model] = {name: float(np.polyfit(tokens, np.log(cost), 1)[0]) for name, cost in costs.items()}
    return exponents


def draw(places, rows, exponents):
    """Draw time against tokens, and speed against batch size and threads, into three axes."""
    tokens, *others = places
    colours = {model: f"C{place}" for place, model in enumerate(dict.fromkeys(row["model"] for row in rows["threads"]))}
    for (model, part), line in _lines(rows["image_size"]).items():
        label, style = f"{model}, {part}", "--" if part == TOKEN_MODULE else "-"
        if part == TOKEN_MODULE and model in exponents:
            label += f": tokens$^{{{exponents[model]['time']:.2f}}}$"
        x, milliseconds = [row["tokens"] for row in line], [row["milliseconds"]["lowest"] for row in line]
        tokens.loglog(x, milliseconds, style, color=colours[model], marker="o", label=label)
    sizes = {row["tokens"]: row["image_size"] for row in rows["image_size"]}
    tokens.set_xticks(list(sizes), [f"{number}\n({size})" for number, size in sizes.items()])
    tokens.set_xticks([], minor=True)
    tokens.set(title="One image of growing size", xlabel="tokens of the T2T module (pixels)")
    tokens.set_ylabel("ms per image, fastest round")
    for axes, key, title in zip(others, ("batch_size", "threads"), ("Batch size", "Threads")):
        for (model, _), line in _lines(rows[key]).items():
            x, figures = [row[key] for row in line], [row["images_per_second"] for row in line]
            medians, lowest, highest = ([each[name] for each in figures] for name in ("median", "lowest", "highest"))
            errors = np.subtract(medians, lowest), np.subtract(highest, medians)
            axes.errorbar(x, medians, errors, marker="o", capsize=3, color=colours[model], label=model)
        axes.set(title=title, xlabel=title.lower(), ylabel="images per second", ylim=(0, None), xticks=x)
    for axes in places:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def _lines(rows):
    """{(model, part): its rows}"""
    lines = {}
    for row in rows:
        lines.setdefault((row["model"], row["part"]), []).append(row)
    return lines
