"""The picture of how cost grows."""

from t2t_vit.bench.sweep import TOKEN_MODULE
from t2t_vit.common.figures import figure_to

STYLES = {"model": "-", TOKEN_MODULE: "--"}


def draw(rows, exponents, path):
    """Draw the rows of `growth.benchmark_growth` into a file, complete or not at all."""
    with figure_to(path, (13, 4.2)) as figure:
        _fill(figure, rows, exponents)


def _fill(figure, rows, exponents):
    tokens, batches, threads = figure.subplots(1, 3)
    colours = {model: f"C{place}" for place, model in enumerate(dict.fromkeys(row["model"] for row in rows["threads"]))}
    for (model, part), line in _lines(rows["image_size"], "part").items():
        label = f"{model}, {part}"
        if part == TOKEN_MODULE and model in exponents:
            label += f": tokens$^{{{exponents[model]['time']:.2f}}}$"
        x, milliseconds = [row["tokens"] for row in line], [row["milliseconds"]["lowest"] for row in line]
        tokens.loglog(x, milliseconds, STYLES[part], color=colours[model], marker="o", label=label)
    _label_sizes(tokens, rows["image_size"])
    tokens.set(
        title="One image of growing size",
        xlabel="tokens of the T2T module (pixels)",
        ylabel="ms per image, fastest round",
    )
    for axes, key, title in ((batches, "batch_size", "Batch size"), (threads, "threads", "Threads")):
        for (model, _), line in _lines(rows[key], "part").items():
            x, figures = [row[key] for row in line], [row["images_per_second"] for row in line]
            below = [each["median"] - each["lowest"] for each in figures]
            above = [each["highest"] - each["median"] for each in figures]
            axes.errorbar(x, [each["median"] for each in figures], (below, above), marker="o", capsize=3, label=model)
        axes.set(title=title, xlabel=title.lower(), ylabel="images per second", ylim=(0, None), xticks=x)
    for axes in (tokens, batches, threads):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def _lines(rows, key):
    """{(model, row[key]): its rows}."""
    lines = {}
    for row in rows:
        lines.setdefault((row["model"], row[key]), []).append(row)
    return lines


def _label_sizes(axes, rows):
    """Ticks at the measured tokens, with the image sizes below."""
    sizes = {row["tokens"]: row["image_size"] for row in rows}
    axes.set_xticks(list(sizes), [f"{tokens}\n({size})" for tokens, size in sizes.items()])
    axes.set_xticks([], minor=True)
