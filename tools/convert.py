"""Convert weights: python tools/convert.py SRC --output FILE [--model NAME] [--to paddle|torch].

SRC may be a file or URL of the official PyTorch code, timm, PaddleViT, T2T_paddle, paddle_pit or this repository. It
is recognised by its content, and no code in it is run.
"""

import argparse
from pathlib import Path

from t2t_vit.cli import absolute, exit_with, import_paddle, not_empty
from t2t_vit.common.errors import UserError, printable

SUFFIXES = {"paddle": (".pdparams",), "torch": (".pth", ".pt", ".bin", ".tar")}


def main(args):
    import_paddle("cpu")
    from t2t_vit.common.files import display_path, sha256
    from t2t_vit.common.logger import setup_logging
    from t2t_vit.weights import checkpoint
    from t2t_vit.weights.download import local_file
    from t2t_vit.weights.formats import in_paddle_layout, read_weights
    from t2t_vit.weights.load import check_variant

    setup_logging()
    source = local_file(absolute(args.source), "give a weights file or a URL")
    output = Path(args.output)
    check_output(output, source, args)
    weights = read_weights(source)
    name, model = build(args, weights)
    tensors, extra, is_torch = in_paddle_layout(weights, model)
    check_variant(model, weights)
    checkpoint.load_state(model, tensors, source)
    print(printable(f"{display_path(source)}: {weights.form}, {'PyTorch' if is_torch else 'Paddle'}'s layout"))
    print(f"{name}: {len(tensors)} of {len(model.state_dict())} tensors placed")
    if extra:
        kept = "kept" if args.keep_aux_head else "left out (--keep-aux-head keeps it)"
        print(f"extra head: {', '.join(extra)} {kept}")
    write(output, model, extra if args.keep_aux_head else {}, args.to)
    print_fingerprint(model)
    print(f"{printable(output)}: {args.to}, {output.stat().st_size:,} bytes, SHA-256 {sha256(output)}")


def check_output(output, source, args):
    """Raise an error now if the output would overwrite the source or could not be written."""
    from t2t_vit.common.files import check_outputs

    suffixes = SUFFIXES[args.to]
    if output.suffix.lower() not in (*suffixes, ""):
        raise UserError(f"--output {output} must end in {' or '.join(suffixes)}, as --to is {args.to}")
    check_outputs([output], filter(None, [source, args.config]))


# --- The model that the file is of ---


def build(args, weights):
    """(name, model with fresh weights) of --config, --model, the config beside the file, or else the file itself."""
    from t2t_vit.weights.build import build_model

    cfg = load_own_config(args, weights)
    model = build_model(cfg) if cfg is not None else None
    if model is not None and (args.config or shapes_of(model) == weights.shapes):
        return cfg.MODEL.NAME, model
    return build_variant(args.model, weights)


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_own_config(args, weights):
    """Config of --config, or of the run that the file is of if it lies beside it; None if there is none."""
    from t2t_vit.config import load_config

    beside = weights.path.with_name("config.yaml")
    if not args.config and not (weights.is_own and beside.is_file()):
        return None
    classes = weights.shapes.get("head.bias")
    try:
        cfg = load_config(args.config or beside, [("MODEL.NUM_CLASSES", str(classes[0]))] if classes else ())
    except UserError:
        if args.config:
            raise
        return None  # some other program's
    if args.model in (None, cfg.MODEL.NAME):
        return cfg
    if args.config:
        raise UserError(f"--model is {args.model}, but MODEL.NAME in {args.config} is {cfg.MODEL.NAME}")
    return None


def build_variant(name, weights):
    """(name, model) of a variant with the class count, channels and image size of the file."""
    from t2t_vit.models.zoo import create_model
    from t2t_vit.weights.identify import closest, identify

    candidates = identify(weights.shapes)
    if name is None:
        names = [weights.variant] if weights.variant in candidates else closest(candidates)
        if len(names) != 1:
            fits = f"fits {' and '.join(names)}: give --model" if names else "fits no variant: give its --config"
            raise UserError(f"{weights.path} ({weights.form}) {fits}")
        name = names[0]
        print(f"--model {name}, the one that the file {'names' if name == weights.variant else 'fits'}")
    try:
        return name, create_model(name, **candidates.get(name, {}))
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from None


# --- Output ---


def write(output, model, extra, target):
    """Write the weights of `model` and the `extra` tensors, complete or not at all."""
    from t2t_vit.weights import checkpoint
    from t2t_vit.weights.formats import write_torch

    if target == "torch":
        write_torch(output, model, extra)
    else:
        checkpoint.save(output, {**model.state_dict(), **extra})


def print_fingerprint(model):
    """Figures of the logits of one fixed image of noise, by which two conversions can be compared."""
    import numpy as np
    import paddle

    model.eval()
    shape = (1, model.in_chans, *model.image_size)
    image = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(image)).numpy()[0]  # (K,)
    largest = ", ".join(f"{logits[i]:.4f} (class {i})" for i in np.argsort(-logits)[:3])
    print(f"logits of default_rng(0).standard_normal({shape}): mean {logits.mean():.4f}, standard deviation "
          f"{logits.std():.4f}, largest {largest}")  # fmt: skip


def parser():
    parser = argparse.ArgumentParser(
        description="Convert weights of the official PyTorch code, timm, PaddleViT, T2T_paddle, paddle_pit or this "
        "repository, and say what they compute.",
        epilog="Exit status: 0 done, 1 a failure told in one line, 2 an unknown option.",
    )
    parser.add_argument("source", type=not_empty, metavar="SRC", help="file or URL, recognised by its content")
    parser.add_argument("--output", type=not_empty, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--model", type=not_empty, metavar="NAME", help="t2t_vit_14, pit_s, ...; default: what SRC fits"
    )
    parser.add_argument(
        "--to",
        choices=("paddle", "torch"),
        default="paddle",
        help="paddle (default): for this repository; torch: for the official PyTorch code",
    )
    parser.add_argument("--keep-aux-head", action="store_true", help="keep the extra head of Token Labeling")
    parser.add_argument(
        "--config",
        type=not_empty,
        metavar="FILE",
        help="of a model that is no named variant; default: config.yaml beside SRC",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    exit_with(parser().parse_args, main)
