"""The picture `attention`: maps over images that show where a model looks."""

import argparse
import re
from pathlib import Path

import paddle.nn.functional as F
from yacs.config import CfgNode

from t2t_vit.common.files import atomic_path, check_writable
from t2t_vit.common.logger import progress_bar
from t2t_vit.explain.overlay import enlarged, overlay
from t2t_vit.pictures.look import BlockMaps, StageMaps, chosen_methods
from t2t_vit.pictures.model import OVERLAY_TILE, open_pictures, short_path
from t2t_vit.pictures.sheet import Cell, Heading, lines_of, paired, save_sheet, short_name


def draw_attention(args: argparse.Namespace, cfg: CfgNode) -> int:
    """Write the sheet and the overlays. Returns the exit status: 1 if an image cannot be read.

    Raises UserError for options that do not fit the model or each other.
    """
    methods = chosen_methods(args)
    if args.overlays:
        check_writable(Path(args.overlays) / "x.png")
    opened, pictures, status = open_pictures(args, cfg)
    names = opened.predictor.metadata.classes
    maps_of = StageMaps(args, opened.model) if args.stage else BlockMaps(args, opened.model, names, methods)
    lines = []
    for number, picture in enumerate(progress_bar(pictures, desc="attention"), start=1):
        logits, rows = maps_of(picture)
        rows = [[Cell(overlay(picture.image, *each[:3]), each.lines) for each in row] for row in rows]
        first = Cell(enlarged(picture.image), (short_path(picture.path), answer(logits, names)))
        for index, row in enumerate(rows):
            lines += lines_of(None if index else first, row)
        if args.overlays:
            save_overlays(args.overlays, f"{number:03d}-{Path(picture.path).stem}", rows)
    scale = "each map from its smallest value (dark) to its largest (light)"
    heading = Heading(f"{opened.cfg.NAME}: where the model looks", (*maps_of.notes(), scale))
    save_sheet([heading, *paired(lines)], args.sheet, OVERLAY_TILE)
    return status


def answer(logits, names):
    """Describe the predicted class and its probability."""
    probabilities = F.softmax(logits[0])
    best = int(probabilities.argmax())
    return f"{short_name(names[best])} {float(probabilities[best]):.2f}"


def save_overlays(folder, name, rows):
    """Write the image of every cell as a PNG file named after its caption."""
    for cell in sum(rows, []):
        caption = re.sub(r"[^\w]+", "-", " ".join(cell.lines)).strip("-")
        with atomic_path(Path(folder) / f"{name}-{caption}.png") as temporary:
            cell.image.save(temporary, "PNG")
