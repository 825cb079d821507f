"""The command convert.py: convert weights of known programs for this repository, the official PyTorch code or a hub."""

import argparse
import contextlib
from pathlib import Path

import numpy as np
import paddle

from t2t_vit.common.errors import UserError, printable
from t2t_vit.common.files import atomic_path, check_outputs, display_path, sha256
from t2t_vit.common.logger import setup_logging
from t2t_vit.config import load_config
from t2t_vit.models.zoo import create_model
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model
from t2t_vit.weights.download import local_file
from t2t_vit.weights.formats import EXTRA, in_paddle_layout, linear_weights, read_weights, transposed
from t2t_vit.weights.identify import closest, identify
from t2t_vit.weights.load import check_variant
from t2t_vit.weights.published import table

_SUFFIXES = {
    "paddle": (".pdparams",), "torch": (".pth", ".pt", ".bin", ".tar"), "safetensors": (".safetensors",)
}  # fmt: skip


def convert(args: argparse.Namespace) -> None:
    """Convert the file of a command line. Print what it contains and statistics of the model's output."""
    setup_logging()
    source = local_file(args.source, "give a weights file or a URL")
    output = Path(args.output)
    to = format_of(args)
    if output.exists() and not output.is_file():
        raise UserError(f"--output {output} is not a file; a pipe or device cannot hold weights")
    check_outputs([output], filter(None, [source, args.config]))
    weights = read_weights(source)
    name, model = _build(args, weights)
    tensors, extra, is_torch = in_paddle_layout(weights, model)
    check_variant(model, weights)
    checkpoint.load_state(model, tensors, source)
    print(printable(f"{display_path(source)}: {weights.form}, {'PyTorch' if is_torch else 'Paddle'}'s layout"))
    print(f"{name}: {len(tensors)} of {len(model.state_dict())} tensors loaded")
    if extra:
        kept = "kept" if args.keep_aux_head else "left out (--keep-aux-head keeps it)"
        print(f"extra head: {', '.join(extra)} {kept}")
    extra = extra if args.keep_aux_head else {}
    write = {"paddle": _write_paddle, "torch": _write_torch, "safetensors": _write_safetensors}[to]
    write(output, model, extra)
    _print_fingerprint(model)
    print(f"{printable(output)}: {to}, {output.stat().st_size:,} bytes, SHA-256 {sha256(output)}")


def format_of(args: argparse.Namespace) -> str:
    """Return the format that a command line asks for, a choice of --to. UserError if --output has another suffix."""
    suffix = Path(args.output).suffix.lower()
    to = args.to or ("safetensors" if suffix == ".safetensors" else "paddle")
    if suffix not in (*_SUFFIXES[to], ""):
        raise UserError(f"--output {args.output} must end in {' or '.join(_SUFFIXES[to])}, as --to is {to}")
    return to


def _build(args, weights):
    """Build the model of --config, of the config beside a run's weights, or of a variant: (name, fresh model)."""
    beside = weights.path.with_name("config.yaml")
    if args.config:
        cfg = _load_config(args.config, weights)
        return cfg.MODEL.NAME, build_model(cfg)
    if beside.is_file() and checkpoint.is_own(weights.path):
        with contextlib.suppress(UserError):  # the config may belong to another program
            cfg = _load_config(beside, weights)
            if args.model in (None, cfg.MODEL.NAME):
                model = build_model(cfg)
                if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == weights.shapes:
                    return cfg.MODEL.NAME, model
    return _build_variant(args.model, weights, args.source)


def _load_config(path, weights):
    """Load a config, and set the number of classes of `weights`."""
    classes = weights.shapes.get("head.bias")
    return load_config(path, [("MODEL.NUM_CLASSES", str(classes[0]))] if classes else ())


def _build_variant(name, weights, source):
    """Build a variant with the number of classes, channels and image size of the file: (name, model)."""
    candidates = identify(weights.shapes)
    if name is None and source in table():
        name = table()[source].model
    if name is None:
        names = [weights.variant] if weights.variant in candidates else closest(candidates)
        if len(names) != 1:
            fits = f"fits {' and '.join(names)}: give --model" if names else "fits no variant: give its --config"
            raise UserError(f"{weights.path} ({weights.form}) {fits}")
        name = names[0]
        print(f"--model {name}, which the file {'names' if name == weights.variant else 'fits'}")
    try:
        return name, create_model(name, **candidates.get(name, {}))
    except ValueError as error:
        raise UserError(f"--model {name}: {error}") from None


def _write_paddle(path, model, extra):
    checkpoint.save(path, {**model.state_dict(), **extra})


def _write_torch(path, model, extra):
    """Write the weights of `model` and the tensors in `extra` as a file for the official PyTorch code.

    Raises UserError if PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError("--to torch needs PyTorch: pip install torch (the CPU build is enough)") from None
    tree = {name: torch.tensor(value) for name, value in _official_tensors(model, extra).items()}
    if any(name.startswith("tokens_to_token.") for name in tree):
        tree = {"state_dict": tree, "state_dict_ema": tree}  # some official code reads the first, some the second
    with atomic_path(path) as temporary:
        torch.save(tree, temporary)


def _write_safetensors(path, model, extra):
    """Write the same tensors as a safetensors file, as hubs expect it. Raises UserError if the package is missing."""
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise UserError("--to safetensors needs a package: pip install safetensors") from None
    with atomic_path(path) as temporary:
        save_file(_official_tensors(model, extra), temporary, metadata={"format": "pt"})  # layout of PyTorch


def _official_tensors(model, extra):
    """Return {name: array} in the layout of the official PyTorch code."""
    own = {name: checkpoint.to_array(tensor) for name, tensor in model.state_dict().items()}
    return {**transposed(own, linear_weights(model)), **transposed(extra, EXTRA)}


def _print_fingerprint(model):
    """Print statistics of the logits for one fixed image of noise, to compare two conversions."""
    model.eval()
    shape = (1, model.in_chans, *model.image_size)
    image = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(image)).numpy()[0]  # (K,)
    largest = ", ".join(f"{logits[i]:.4f} (class {i})" for i in np.argsort(-logits)[:3])
    print(f"logits of default_rng(0).standard_normal({shape}): mean {logits.mean():.4f}, standard deviation "
          f"{logits.std():.4f}, largest {largest}")  # fmt: skip
