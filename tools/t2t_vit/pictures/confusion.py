"""Plot which classes a model confuses: as a matrix, or with many classes as the most confused pairs."""

from t2t_vit.common.figures import figure_to, plain
from t2t_vit.pictures.sheet import short_name
from t2t_vit.training.class_counts import confused_pairs

MAX_MATRIX = 30  # largest number of classes for a matrix
PAIRS = 30


def draw_confusion(matrix, names, title, path):
    """Plot a confusion matrix, see `class_counts.confusion_matrix`, and write the plot to a file."""
    names = [name if len(name) <= 20 else f"{name[:17]}..." for name in map(short_name, names)]
    names = list(map(plain, names))
    if len(names) <= MAX_MATRIX:
        side = 2.5 + max(0.5 * len(names), 2)
        with figure_to(path, (side + 1, side)) as figure:
            figure.set_layout_engine("compressed")  # no room beside a square
            _draw_matrix(figure.subplots(), matrix, names, plain(title))
        return
    pairs = confused_pairs(matrix)[:PAIRS]
    with figure_to(path, (9, 1.5 + 0.28 * len(pairs))) as figure:
        _draw_pairs(figure.subplots(), pairs, names, plain(title))


def _draw_matrix(axes, matrix, names, title):
    """Draw the counts. Colours show the fraction of the row."""
    fractions = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for true, other in zip(*matrix.nonzero()):
        colour = "white" if fractions[true, other] > 0.5 else "black"
        axes.text(other, true, str(matrix[true, other]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.figure.suptitle(title)
    axes.figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)


def _draw_pairs(axes, pairs, names, title):
    """Draw a bar for each pair, with the most confused one at the top."""
    axes.set_title(title)
    if not pairs:
        axes.text(0.5, 0.5, "no image is classified wrongly", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    bars = axes.barh(range(len(pairs)), [count for _, _, count, _ in pairs])
    axes.bar_label(bars, [f" {fraction:.0%}" for *_, fraction in pairs], fontsize=8)
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[other]}" for true, other, _, _ in pairs])
    axes.margins(x=0.1)
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel("images of the true class (left) predicted as the other; as a fraction of the class")
