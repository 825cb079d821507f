"""How the cost of inference grows with the image size, the batch size and the threads.

The time of a performer T2T module is linear in the number of tokens; that of a transformer is nearly quadratic.
"""

import argparse

import numpy as np

from t2t_vit.bench.counts import count
from t2t_vit.bench.infer import eager
from t2t_vit.bench.sweep import TOKEN_MODULE, Subject, measure, print_rows
from t2t_vit.common.errors import UserError
from t2t_vit.common.figures import check_suffix, figure_to, require_matplotlib
from t2t_vit.common.logger import log

TITLES = ("model", "part", "pixels", "tokens", "batch", "threads", "images/s", "ms/batch", "GMACs")


def benchmark_growth(args, cfgs, report):
    """Measure how the inference of T2T-ViTs grows, print and draw the figures.

    The image size is varied for one image at a time, with the whole model and with its T2T module alone. The batch size
    and the threads are varied for the whole model at the config's image size.
    """
    for cfg in cfgs:
        if not count(cfg)["token_module_gmacs"]:
            raise UserError(f"MODEL.NAME {cfg.MODEL.NAME}: growth needs a T2T module, which a PiT does not have")
    check_suffix(args.plot, "--plot")
    require_matplotlib()
    whole, module = ({"part": "model"}, eager), ({"part": TOKEN_MODULE}, eager, True)
    most = args.threads[-1:]
    sweeps = {
        "growth_image_size": _sweep(args, args.image_sizes, [1], most, [whole, module]),
        "growth_batch_size": _sweep(args, None, args.batch_sizes, most, [whole]),
        "growth_threads": _sweep(args, None, args.batch_sizes[-1:], args.threads, [whole]),
    }
    rows = {name: measure(report, name, varied, cfgs, 1, subjects) for name, (varied, subjects) in sweeps.items()}
    print_rows([row for part in rows.values() for row in part], TITLES, args.markdown)
    draw_growth(rows, args.plot)


def _sweep(args, image_sizes, batch_sizes, threads, parts):
    """Return the options and the `subjects_of` of a call of `measure`."""
    varied = {"image_sizes": image_sizes, "batch_sizes": batch_sizes, "threads": threads}

    def subjects(cfg, samples, _):
        return [Subject(labels, (make, cfg, samples, *words)) for labels, make, *words in parts]

    return argparse.Namespace(**{**vars(args), **varied}), subjects


def draw_growth(report, path):
    """Plot {name: rows} of `benchmark_growth`, which --json has too."""
    with figure_to(path, (9, 7)) as figure:
        places = figure.subplot_mosaic([["image_size", "image_size"], ["batch_size", "threads"]])
        draw_sizes(places["image_size"], report["growth_image_size"])
        for name in ("batch_size", "threads"):
            draw_speed(places[name], report[f"growth_{name}"], name)


def draw_sizes(axes, rows):
    """Plot the time of one image against its number of tokens, and print p of the fit time ~ tokens ** p.

    The fit is by least squares on the logarithms. It uses the fastest round, which other programs disturb least.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    for (model, part), line in lines_of(rows).items():
        tokens, times = [row["tokens"] for row in line], [row["milliseconds"]["lowest"] for row in line]
        label = f"{model}, {part}"
        if len(tokens) > 1:
            power = np.polyfit(np.log(tokens), np.log(times), 1)[0]
            log.info("%s: time grows with the tokens to the power of %.2f", label, power)
            label += f": tokens$^{{{power:.2f}}}$"
        style = {"color": f"C{models.index(model)}", "linestyle": "--" if part == TOKEN_MODULE else "-"}
        axes.loglog(tokens, times, marker="o", label=label, **style)
    sizes = {row["tokens"]: row["image_size"] for row in rows}
    axes.set_xticks(list(sizes), [f"{number}\n({size})" for number, size in sizes.items()])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="tokens of the T2T module (side of the image in pixels)", ylabel="ms for one image, fastest round")
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside upper center", ncols=len(models))  # its colours are those of all plots


def draw_speed(axes, rows, key):
    """Plot images per second against a key of the rows: median, lowest and highest round."""
    for line in lines_of(rows).values():
        x, rates = [row[key] for row in line], [row["images_per_second"] for row in line]
        median, lowest, highest = (np.array([rate[edge] for rate in rates]) for edge in ("median", "lowest", "highest"))
        axes.errorbar(x, median, (median - lowest, highest - median), marker="o", capsize=3)
    axes.set(xlabel=key.replace("_", " "), ylabel="images per second (median)", ylim=(0, None), xticks=x)
    axes.grid(alpha=0.3)


def lines_of(rows):
    """Group the rows by model and part: {(model, part): rows}."""
    lines = {}
    for row in rows:
        lines.setdefault((row["model"], row["part"]), []).append(row)
    return lines
