"""The picture `curves`: loss, accuracy, learning rate and throughput of training runs on the same axes."""

import argparse

from t2t_vit.cli import json_file, not_empty

READS_CONFIG = False  # main(args) without cfg, nor paddle

# Title of each panel, what its numbers are multiplied by, and its lines: key of a row, style, name.
PANELS = {
    "loss": (1, (("train_loss", ":", "train"), ("val_loss", "-", "val"), ("val_ema_loss", "--", "val, EMA"))),
    "top-1 (%)": (100, (("train_acc", ":", "train"), ("val_top1", "-", "val"), ("val_ema_top1", "--", "val, EMA"))),
    "learning rate": (1, (("lr", "-", ""),)),
    "images per second": (1, (("images_per_second", "-", ""),)),
}
_MANY = 10  # runs, more than matplotlib's own colours


def main(args):
    import json

    from t2t_vit.common.errors import UserError, printable
    from t2t_vit.common.figures import check_suffix, figure_to, require_matplotlib
    from t2t_vit.common.files import check_outputs, display_path, write_text
    from t2t_vit.pictures.run_logs import read_runs

    check_suffix(args.sheet, "--sheet")
    check_outputs((args.sheet, args.json), args.runs)
    require_matplotlib()
    runs = read_runs(args.runs)
    panels = panels_of(runs)
    if not panels:
        raise UserError(f"{runs[0].source} has nothing to draw: no loss, accuracy, learning rate or images per second")
    rows, columns = (1, 1) if len(panels) == 1 else (-(-len(panels) // 2), 2)
    with figure_to(args.sheet, (6 * columns, 3.6 * rows + 0.5)) as figure:
        draw(figure, list(figure.subplots(rows, columns, squeeze=False).flat), runs, panels)
    if args.json:
        told = [{"name": run.name, "source": str(display_path(run.source)), "epochs": epochs_of(run)} for run in runs]
        write_text(args.json, json.dumps(told, indent=1) + "\n")
    for run in runs:
        print(printable(summary(run)))
    for path in filter(None, (args.sheet, args.json)):
        print(f"{printable(display_path(path))} written")


def parser():
    parser = argparse.ArgumentParser(
        prog="visualize.py curves",
        description="Draw loss, top-1, learning rate and throughput of training runs.",
        epilog="Exit status: 0 done, 1 a failure told in one line, 2 an unknown option.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=not_empty,
        metavar="RUN",
        help="run folder, its metrics.jsonl, log of this repository, T2T_paddle or paddle_pit, or timm's summary.csv",
    )
    parser.add_argument(
        "--sheet", type=not_empty, default="curves.png", metavar="FILE", help=".png, .pdf or .svg; default curves.png"
    )
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write the numbers of every epoch")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


# --- Numbers ---


def panels_of(runs):
    """The part of `PANELS` that the runs tell anything of."""
    told = {key for run in runs for row in run.rows.values() for key in row}
    panels = {title: (scale, [line for line in lines if line[0] in told]) for title, (scale, lines) in PANELS.items()}
    return {title: panel for title, panel in panels.items() if panel[1]}


def epochs_of(run):
    return [{"epoch": epoch, **row} for epoch, row in sorted(run.rows.items())]


def summary(run):
    """One line: the run's epochs and its best validations."""
    text = f"{run.name}: epochs {min(run.rows)} to {max(run.rows)}"
    for key, name in (("val_top1", "val"), ("val_ema_top1", "EMA")):
        told = [(row[key], -epoch) for epoch, row in run.rows.items() if row.get(key) is not None]
        if told:
            top1, epoch = max(told)
            text += f", best {name} top-1 {top1:.4f} in epoch {-epoch}"
    return text


# --- Drawing ---


def draw(figure, places, runs, panels):
    """Fill the figure: a panel of `panels` in each place, a colour for each run, a style for each kind of number."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    from t2t_vit.common.figures import plain

    colours = run_colours(len(runs))
    for axes, (title, (scale, lines)) in zip(places, panels.items()):
        for run, colour in zip(runs, colours):
            for key, style, _ in lines:
                epochs, numbers = run.series(key)
                marker = "." if len(epochs) < 20 else ""
                axes.plot(epochs, [scale * number for number in numbers], style, color=colour, marker=marker)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", scilimits=(-2, 5))
        axes.grid(alpha=0.3)
        if title == "images per second":
            axes.set_ylim(bottom=0)
        if lines[0][2]:
            axes.legend(handles=[Line2D([], [], color="0.3", ls=style, label=name) for _, style, name in lines])
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    names = [Line2D([], [], color=colour, label=plain(run.name)) for run, colour in zip(runs, colours)]
    fitting = int(10 * figure.get_figwidth()) // (6 + max(len(run.name) for run in runs))  # ten letters to an inch
    figure.legend(handles=names, loc="outside upper center", ncols=max(1, min(len(runs), fitting)))


def run_colours(count):
    if count <= _MANY:
        return [f"C{place}" for place in range(count)]
    import matplotlib

    return [matplotlib.colormaps["turbo"](place / (count - 1)) for place in range(count)]
