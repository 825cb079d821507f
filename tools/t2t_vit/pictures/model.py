"""Shared by the pictures of a model: open the model, and read images as it sees them."""

import sys
from typing import NamedTuple

import paddle
from PIL import Image

from t2t_vit.common.errors import UserError, printable
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.data.images import to_image
from t2t_vit.deploy.engines import to_input
from t2t_vit.deploy.open_model import open_model
from t2t_vit.deploy.predict import find_images, read_images
from t2t_vit.pictures.sheet import check_sheet


class Picture(NamedTuple):
    """An image as the model sees it."""

    path: str
    image: Image.Image
    pixels: paddle.Tensor  # (1, C, S, S), normalised


def open_pictures(args, cfg):
    """Open the model and up to --count of the images of a command line, evenly spaced.

    Returns:
        (`OpenedModel`, list of `Picture`, exit status: 1 if an image cannot be read).

    Raises:
        UserError: wrong options, an exported model, or no readable image.
    """
    setup_logging()
    paths = find_images(args.words)
    check_sheet(args.sheet, [*args.inputs, *paths])
    if len(paths) > args.count:
        log.info(
            "drawing %d of %d images, evenly spaced; raise --count to draw more",
            args.count,
            len(paths),
        )
        paths = [paths[len(paths) * i // args.count] for i in range(args.count)]
    opened = open_model(args, cfg, weights_only=True)
    if not args.weights_named:
        log.info("note: %s", opened)
    found, errors = read_images(paths, opened.cfg)
    if not found:
        raise UserError(errors[paths[0]])
    for error in errors.values():
        print(f"error: {printable(error)}", file=sys.stderr)
    metadata = opened.predictor.metadata
    pictures = [
        Picture(path, to_image(pixels), paddle.to_tensor(to_input(pixels[None], metadata)))
        for path, pixels in found.items()
    ]
    return opened, pictures, 1 if errors else 0


def chosen_numbers(option, chosen, count, what):
    """Convert an option, a number from 1 to `count` or "all", to indices from 0. Raises UserError if too large."""
    if chosen == "all":
        return list(range(count))
    if chosen > count:
        raise UserError(f"{option} is {chosen} but {what} are 1 to {count}")
    return [chosen - 1]
