"""What the pictures of a model begin with: the model, and images as it sees them."""

import sys

OVERLAY_TILE = 192  # pixels: side of a picture on the sheets


def open_model(args, cfg):
    """(model in eval mode, the config that fits it, `Metadata` of its input and classes).

    Raises UserError for an exported model: of that only the answer can be had.
    """
    from t2t_vit.common.logger import log
    from t2t_vit.deploy.open_model import open_model

    opened = open_model(args, cfg, weights_only=True)
    if not args.weights_named:
        log.info("note: %s", opened)
    return opened.model, opened.cfg, opened.predictor.metadata


def chosen_paths(args):
    """--count of the images that the command line names, as predict.py finds them, evenly from first to last."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.logger import log
    from t2t_vit.deploy.predict import find_images

    if args.count < 1:
        raise UserError(f"--count is {args.count} but must be 1 or more")
    paths = find_images(args.words)
    if len(paths) <= args.count:
        return paths
    log.info("%d of %d images are drawn, evenly from first to last: --count takes more", args.count, len(paths))
    return [paths[len(paths) * place // args.count] for place in range(args.count)]


def read_images(paths, cfg, metadata):
    """(list of (path, PIL image as the model sees it, input (1, C, S, S)), number of images that could not be read).

    The unreadable are told on stderr. Raises UserError if all are.
    """
    import paddle

    from t2t_vit.common.errors import printable
    from t2t_vit.data.images import ImageError, load_image, reading, to_image
    from t2t_vit.data.transforms import EvalTransform
    from t2t_vit.deploy.engines import to_input

    transform, found, failed = EvalTransform(cfg), [], []
    for path in paths:
        try:
            pixels = transform(load_image(path, **reading(cfg, by_hand=True)))
        except ImageError as error:
            failed.append(error)
            continue
        found.append((path, to_image(pixels), paddle.to_tensor(to_input(pixels[None], metadata))))
    if not found:
        raise failed[0]
    for error in failed:
        print(f"error: {printable(error)}", file=sys.stderr)
    return found, len(failed)
