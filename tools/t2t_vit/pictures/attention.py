"""The picture `attention`: where a model looks.

Overlays of its attention, attention rollout and gradient-weighted attention over pictures as the model sees them.
"""

import argparse
import re
from pathlib import Path

from t2t_vit.cli import common_parser, not_empty
from t2t_vit.cli import split_images as split_words  # noqa: F401  visualize.py takes it from here
from t2t_vit.pictures.model import add_image_options

METHODS = ("attention", "rollout", "gradient")
FUSED = ("mean", "max", "min")


def main(args, cfg):
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.files import check_writable, display_path
    from t2t_vit.common.logger import log, progress_bar, setup_logging
    from t2t_vit.explain.overlay import enlarged
    from t2t_vit.pictures.cells import check_figure, lines_of, save_figure
    from t2t_vit.pictures.look import drawn, open_look
    from t2t_vit.pictures.model import chosen_paths, open_model, read_images

    setup_logging()
    paths = chosen_paths(args)
    check_figure(args.sheet, [*args.inputs, *paths])
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
        rows = [[(drawn(image, panel), panel.caption) for panel in row] for row in rows]
        lines += lines_of((enlarged(image), f"{shown_name(path)}\n{answer}"), rows)
        if args.overlays:
            save_overlays(args.overlays, f"{number:03d}-{Path(path).stem}", rows)
    save_figure(args.sheet, f"{cfg.NAME}: where the model looks", look.explanations(), lines)
    log.info("%s written", display_path(args.sheet))
    return 1 if failed else 0


def parser():
    parser = common_parser("Draw where a model looks.", batch_size_key="VAL.BATCH_SIZE")
    add_image_options(parser, "attention")
    add = parser.add_argument
    add("--method", choices=METHODS, help="default: all three that the other options allow")
    add("--block", type=number_or("all"), metavar="N|all", help="block, from 1, of the backbone; default the last; "
        "rollout and gradient go from the first to it")  # fmt: skip
    add("--head", type=number_or("all", *FUSED), metavar="N|all|mean|max|min",
        help="head, from 1, or what is taken over the heads; default mean")  # fmt: skip
    add("--class-id", type=int, metavar="N", help="class of --method gradient; default the predicted one")
    add("--query", type=place, action="append", metavar="ROW,COLUMN",
        help="the token that looks, from 1,1 on the grid of its block; default the class one; repeatable")  # fmt: skip
    add(
        "--stage",
        type=int,
        metavar="N",
        help="look into layer N of the T2T module instead, by default from three tokens on its diagonal",
    )
    add("--token", choices=("class", "distillation"), help="of a distilled PiT, the token that looks; default class")
    add("--overlays", type=not_empty, metavar="DIR", help="write each overlay as a PNG of its own, too")
    return parser


def number_or(*words):
    """Type of an option that takes a whole number from 1 or one of `words`."""

    def convert(text):
        if text in words or text.isdecimal() and int(text):
            return int(text) if text.isdecimal() else text
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 or {', '.join(words)}")

    return convert


def place(text):
    """Type of an option that takes ROW,COLUMN, both from 1."""
    if not re.fullmatch(r"0*[1-9]\d*,0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be ROW,COLUMN, two numbers from 1")
    return tuple(int(word) - 1 for word in text.split(","))


def shown_name(path):
    """The end of a path, as much as a caption holds."""
    name = "/".join(Path(path).absolute().parts[-2:])
    return name if len(name) <= 24 else f"{name[:10]}...{name[-11:]}"


def save_overlays(folder, name, rows):
    from t2t_vit.common.files import atomic_path

    for image, caption in (cell for row in rows for cell in row):
        words = re.sub(r"[^\w]+", "-", caption).strip("-")
        with atomic_path(Path(folder) / f"{name}-{words}.png") as temporary:
            image.save(temporary, "PNG")
