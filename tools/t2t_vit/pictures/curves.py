"""The picture `curves`: loss, accuracy, learning rate and throughput of training runs on the same axes."""

import argparse

from t2t_vit.common.errors import UserError, printable
from t2t_vit.common.figures import check_suffix, figure_to, plain, require_matplotlib
from t2t_vit.common.files import check_outputs, display_path
from t2t_vit.runs.run_logs import read_runs

# {title of a panel: (factor for its numbers, lines: (key of a row, style, name))}
PANELS = {
    "loss": (1, (("train_loss", ":", "train"), ("val_loss", "-", "val"), ("val_ema_loss", "--", "val, EMA"))),
    "top-1 (%)": (100, (("train_acc", ":", "train"), ("val_top1", "-", "val"), ("val_ema_top1", "--", "val, EMA"))),
    "learning rate": (1, (("lr", "-", ""),)),
    "images per second": (1, (("images_per_second", "-", ""),)),
}


def draw_curves(args: argparse.Namespace) -> None:
    """Plot the runs that the options name, and print a line about each. Raises UserError or OSError."""
    check_suffix(args.sheet, "--sheet")
    check_outputs([args.sheet], args.runs)
    require_matplotlib()
    runs = read_runs(args.runs)
    panels = panels_of(runs)
    if not panels:
        raise UserError(f"{runs[0].source} has nothing to draw: no loss, accuracy, learning rate or images per second")
    rows, columns = (1, 1) if len(panels) == 1 else (-(-len(panels) // 2), 2)
    with figure_to(args.sheet, (4.8 * columns, 3.2 * rows + 0.5)) as figure:
        draw(figure, list(figure.subplots(rows, columns, squeeze=False).flat), runs, panels)
    for run in runs:
        print(printable(summary(run)))
    print(f"{printable(display_path(args.sheet))} written")


def panels_of(runs):
    """Keep the panels and lines of `PANELS` that the runs have numbers for."""
    keys = {key for run in runs for row in run.rows.values() for key in row}
    panels = {title: (scale, [line for line in lines if line[0] in keys]) for title, (scale, lines) in PANELS.items()}
    return {title: panel for title, panel in panels.items() if panel[1]}


def summary(run):
    """Describe a run in one line: its epochs and its best validation results."""
    text = f"{run.name}: epochs {min(run.rows)} to {max(run.rows)}"
    for key, name in (("val_top1", "val"), ("val_ema_top1", "EMA")):
        if found := run.best(key):
            text += f", best {name} top-1 {found[0]:.4f} in epoch {found[1]}"
    return text


def draw(figure, places, runs, panels):
    """Plot each of `panels` in one of `places` (axes). Runs differ by colour, kinds of numbers by line style."""
    from matplotlib.lines import Line2D  # optional library

    for axes, (title, (scale, lines)) in zip(places, panels.items()):
        for number, run in enumerate(runs):
            for key, style, _ in lines:
                epochs, numbers = run.series(key)
                marker = "." if len(epochs) < 20 else ""
                axes.plot(epochs, [scale * each for each in numbers], style, color=f"C{number}", marker=marker)
        axes.set(title=title, xlabel="epoch")
        axes.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10])
        axes.ticklabel_format(axis="y", scilimits=(-2, 5))
        axes.grid(alpha=0.3)
        if title == "images per second":
            axes.set_ylim(bottom=0)
        if lines[0][2]:
            axes.legend(handles=[Line2D([], [], color="0.3", ls=style, label=name) for _, style, name in lines])
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    names = [Line2D([], [], color=f"C{number}", label=plain(run.name)) for number, run in enumerate(runs)]
    figure.legend(handles=names, loc="outside upper center", ncols=min(len(runs), 3))
