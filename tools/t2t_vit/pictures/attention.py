"""The picture `attention`: maps over images that show where a model looks."""

import argparse
import re
from pathlib import Path

import numpy as np
import paddle.nn.functional as F
from yacs.config import CfgNode

from t2t_vit.common.files import atomic_path, check_writable
from t2t_vit.common.logger import progress_bar
from t2t_vit.explain.overlay import coloured, overlay
from t2t_vit.pictures.look import BlockMaps, StageMaps, chosen_methods
from t2t_vit.pictures.model import open_pictures
from t2t_vit.pictures.sheet import INK, RIGHT, WRONG, Cell, Heading, save_sheet, short_name, short_path, table


def draw_attention(args: argparse.Namespace, cfg: CfgNode) -> int:
    """Write the sheet and the overlays. Returns the exit status: 1 if an image cannot be read.

    Raises UserError for options that do not fit the model or each other.
    """
    methods = chosen_methods(args)
    if args.overlays:
        check_writable(Path(args.overlays) / "x.png")
    opened, pictures, status = open_pictures(args, cfg)
    names = opened.classes.names
    maps_of = StageMaps(args, opened.model) if args.stage else BlockMaps(args, opened.model, names, methods)
    cells, rows_of = [], []
    for number, picture in enumerate(progress_bar(pictures, desc="attention"), start=1):
        logits, rows = maps_of(picture)
        rows = [[Cell(overlay(picture.image, *each[:3]), each.lines) for each in row] for row in rows]
        cells.append(Cell(picture.image, (short_path(picture.path), answer(logits, picture.path, opened))))
        rows_of.append(rows)
        if args.overlays:
            save_overlays(args.overlays, f"{number:03d}-{Path(picture.path).stem}", rows)
    notes = maps_of.notes()
    if any(colour == WRONG for _, (_, colour) in (cell.lines for cell in cells)):
        notes.append("red: the predicted class is not that of the image's folder")
    bar = ("smallest value of a map", coloured(np.linspace(0, 1, 256)[None]), "largest")
    title = f"{opened.cfg.NAME}: where the model looks"
    save_sheet([Heading(title, tuple(notes), bar), *table(cells, rows_of)], args.sheet)
    return status


def answer(logits, path, opened):
    """Return (probability and name of the predicted class, colour: whether that is the class of the image's folder)."""
    probabilities = F.softmax(logits[0])
    best, folder = int(probabilities.argmax()), Path(path).absolute().parent.name
    colour = INK if folder not in opened.classes.folders else RIGHT if opened.classes.folders[best] == folder else WRONG
    return f"{float(probabilities[best]):.2f} {short_name(opened.classes.names[best])}", colour


def save_overlays(folder, name, rows):
    """Write the image of every cell as a PNG file named after its caption."""
    for cell in sum(rows, []):
        caption = re.sub(r"[^\w]+", "-", " ".join(cell.lines)).strip("-")
        with atomic_path(Path(folder) / f"{name}-{caption}.png") as temporary:
            cell.image.save(temporary, "PNG")
