"""The picture `attention`: where a model looks, as maps laid over images."""

import re
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import atomic_path, check_writable
from t2t_vit.common.logger import progress_bar
from t2t_vit.explain.overlay import enlarged
from t2t_vit.pictures.look import choose_maps
from t2t_vit.pictures.model import OVERLAY_TILE, open_pictures
from t2t_vit.pictures.sheet import Cell, Heading, lines_of, paired, save_sheet


def draw_attention(args, cfg):
    """Write the sheet that the options describe, and the overlays. Returns 1 if an image cannot be read.

    Raises UserError for options that do not fit the model or each other.
    """
    if args.overlays:
        if Path(args.overlays).exists() and not Path(args.overlays).is_dir():
            raise UserError(f"--overlays {args.overlays} is not a folder")
        check_writable(Path(args.overlays) / "x.png")
    opened, pictures, status = open_pictures(args, cfg)
    maps = choose_maps(args, opened.model, opened.predictor.metadata.classes)
    lines = []
    for number, picture in enumerate(progress_bar(pictures, desc="attention"), start=1):
        answer, rows = maps.draw(picture)
        lines += lines_of(Cell(enlarged(picture.image), (short_path(picture.path), answer)), rows)
        if args.overlays:
            save_overlays(args.overlays, f"{number:03d}-{Path(picture.path).stem}", rows)
    heading = Heading(f"{opened.cfg.NAME}: where the model looks", tuple(maps.explanations()))
    save_sheet([heading, *paired(lines)], args.sheet, OVERLAY_TILE)
    return status


def short_path(path):
    """The last two parts of a path, shortened to fit a caption."""
    name = "/".join(Path(path).absolute().parts[-2:])
    return name if len(name) <= 24 else f"{name[:10]}...{name[-11:]}"


def save_overlays(folder, name, rows):
    """Write the image of every cell as a PNG file named after its caption."""
    for cell in (cell for row in rows for cell in row):
        caption = re.sub(r"[^\w]+", "-", " ".join(cell.lines)).strip("-")
        with atomic_path(Path(folder) / f"{name}-{caption}.png") as temporary:
            cell.image.save(temporary, "PNG")
