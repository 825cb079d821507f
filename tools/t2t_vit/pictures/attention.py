"""The picture `attention`: where a model looks.

Overlays of its attention, attention rollout and gradient-weighted attention over pictures as the model sees them.
"""

import re
from pathlib import Path


def draw_attention(args, cfg):
    """Write the sheet that the options describe; 1 if an image could not be read. Raises UserError."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.files import check_writable
    from t2t_vit.common.logger import progress_bar, setup_logging
    from t2t_vit.explain.overlay import enlarged
    from t2t_vit.pictures.look import drawn, open_look
    from t2t_vit.pictures.model import OVERLAY_TILE, chosen_paths, open_model, read_images
    from t2t_vit.pictures.sheet import Cell, Heading, check_sheet, lines_of, paired, save_sheet

    setup_logging()
    paths = chosen_paths(args)
    check_sheet(args.sheet, [*args.inputs, *paths])
    if args.overlays:
        if Path(args.overlays).exists() and not Path(args.overlays).is_dir():
            raise UserError(f"--overlays {args.overlays} is no folder")
        check_writable(Path(args.overlays) / "x.png")
    model, cfg, metadata = open_model(args, cfg)
    look = open_look(args, model, metadata.classes)
    images, failed = read_images(paths, cfg, metadata)
    lines = []
    for number, (path, image, pixels) in enumerate(progress_bar(images, desc="attention"), start=1):
        answer, rows = look.at(pixels)
        rows = [[Cell(drawn(image, panel), tuple(panel.caption.split("\n"))) for panel in row] for row in rows]
        lines += lines_of(Cell(enlarged(image), (shown_name(path), answer)), rows)
        if args.overlays:
            save_overlays(args.overlays, f"{number:03d}-{Path(path).stem}", rows)
    heading = Heading(f"{cfg.NAME}: where the model looks", tuple(look.explanations()))
    save_sheet([heading, *paired(lines)], args.sheet, OVERLAY_TILE)
    return 1 if failed else 0


def shown_name(path):
    """The end of a path, as much as a caption holds."""
    name = "/".join(Path(path).absolute().parts[-2:])
    return name if len(name) <= 24 else f"{name[:10]}...{name[-11:]}"


def save_overlays(folder, name, rows):
    from t2t_vit.common.files import atomic_path

    for cell in (cell for row in rows for cell in row):
        words = re.sub(r"[^\w]+", "-", " ".join(cell.lines)).strip("-")
        with atomic_path(Path(folder) / f"{name}-{words}.png") as temporary:
            cell.image.save(temporary, "PNG")
