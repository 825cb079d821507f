"""The command-line options that several commands share, and the types of options."""

from __future__ import annotations

import argparse
import os
import re

_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$|-nan$", re.IGNORECASE)
DEFAULT_CONFIG = "configs/lit_data.yaml"
_PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
WAIT_MS = 5  # how long a picture waits for others to be computed with
_EPILOG = """KEY VALUE pairs override any key of the config, e.g. TRAIN.EPOCHS 100.
tools/t2t_vit/config.py lists all keys with their units and defaults.
Exit status: 0 done, 1 failed (one line on stderr), 2 wrong options or a KEY without a VALUE."""
IMAGES = (
    "IMAGE|FOLDER|GLOB",
    "image files, folders with all images below them, or patterns such as 'val/*.jpg'; default: a "
    "handwritten digit in the repository",
)


def common_parser(
    command: str,
    description: str,
    batch_size_key: str,
    examples: list[str],
    words: tuple[str, str] | None = None,
) -> argparse.ArgumentParser:
    """Argument parser with the options that every command has. --help shows a command's own options before them.

    Args:
        command: name of the command, e.g. "train.py".
        description: first line of --help.
        batch_size_key: config key that --batch-size sets, e.g. "TRAIN.BATCH_SIZE".
        examples: command lines that --help shows, without "python tools/".
        words: (name, help) of positional words beside KEY VALUE, such as `IMAGES`.
    """
    parser = argparse.ArgumentParser(
        prog=command,
        usage=f"{command} [options] {f'[{words[0]} ...] ' if words else ''}[KEY VALUE ...]",
        description=description,
        epilog="\n  ".join(["examples:", *(f"python tools/{example}" for example in examples)]) + f"\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser._negative_number_matcher = _NEGATIVE_NUMBER  # argparse would mistake -1e-3 for an option
    add = parser.add_argument_group("options of all commands").add_argument
    add(
        "--config",
        type=not_empty,
        metavar="FILE",
        help=f"YAML config; default: config.yaml beside --pretrained, else {DEFAULT_CONFIG}",
    )
    add(
        "--data-path",
        type=not_empty,
        metavar="DIR",
        help="data folder: train/ and val/, or class folders and DATA.VAL_FRACTION (sets DATA.PATH)",
    )
    add("--batch-size", metavar="N", help=f"images per process and forward pass ({batch_size_key})")
    add("--output", type=run_folders, metavar="DIR", help="folder of the run folders and their logs (OUTPUT, LOG)")
    add(
        "--pretrained",
        type=not_empty,
        metavar="NAME|FILE|URL",
        help="weights: a published name such as t2t_vit_14, or .pdparams, PyTorch's .pth or .safetensors of this or "
        "another program (MODEL.PRETRAINED)",
    )
    add("--device", metavar="DEVICE", help="cpu, gpu or gpu:N; default: a GPU if there is one (DEVICE)")
    add("--debug", action="store_true", help="show the traceback of a failure")
    name, described = words or ("KEY VALUE", "override config keys")
    parser.add_argument("opts", nargs="*", metavar=name, help=described)
    parser.set_defaults(batch_size_key=batch_size_key, opens_run=False, trains=False, engine=None)
    return parser


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """Add --engine, for the commands that predict."""
    parser.set_defaults(opens_run=True)
    parser.add_argument(
        "--engine",
        choices=("paddle", "inference", "onnxruntime", "openvino"),
        help="paddle runs weights; inference (Paddle Inference), onnxruntime and openvino run an exported file, by "
        "default that of the run; default: the engine that reads the --pretrained file",
    )


def add_address_options(
    parser: argparse.ArgumentParser, what: str, host: str, port: int | None, defaults: tuple[str, str] = ("", "")
) -> None:
    """Add --host, --port and --allow-host.

    Args:
        parser: the command's parser.
        what: "the page" or "the server".
        host: default of --host.
        port: default of --port.
        defaults: what --help says about the two, if they depend on something.
    """
    add = parser.add_argument
    add(
        "--host",
        type=not_empty,
        default=host,
        metavar="ADDRESS",
        help=f"address to listen on; default: {defaults[0] or host} (reachable from this machine only). 0.0.0.0 makes "
        f"{what} reachable from other machines; it has no password",
    )
    add("--port", type=port_number, default=port, metavar="N", help=f"default: {defaults[1] or port}; 0: any free port")
    add(
        "--allow-host",
        type=not_empty,
        action="append",
        default=[],
        metavar="NAME",
        help="accept this host name in the Host header, such as that of a reverse proxy; may be repeated. Default: any "
        f"name if other machines can reach {what}, else only the names of this machine",
    )


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add --engine and --split, for the commands that evaluate."""
    add_engine_option(parser)
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="images to evaluate on; train: the training images under the evaluation transform",
    )


def not_empty(value: str) -> str:
    """Option type: a string that is not empty."""
    if not value:
        raise argparse.ArgumentTypeError("is empty")
    return value


def run_folders(value: str) -> str:
    """Option type: the folder of the run folders. The name of a picture is refused."""
    if not_empty(value).lower().endswith(_PICTURES) and not os.path.isdir(value):
        raise argparse.ArgumentTypeError(f"is the folder of the runs, not a file; visualize.py writes --sheet {value}")
    return value


def report_file(value: str) -> str:
    """Option type: a .json, .md or .txt file to write."""
    if os.path.splitext(not_empty(value))[1].lower() not in (".json", ".md", ".txt"):
        raise argparse.ArgumentTypeError(f"{value} must end in .json, .md or .txt")
    return value


def json_file(value: str) -> str:
    """Option type: a JSON file to write. Other suffixes are refused, so that an image is not overwritten by mistake."""
    return _with_suffix(value, ("", ".json"))


def npz_file(value: str) -> str:
    """Option type: a NumPy .npz file to write."""
    return _with_suffix(value, (".npz",))


def _with_suffix(value, suffixes):
    if os.path.splitext(not_empty(value))[1].lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"{value} must end in {suffixes[-1]}")
    return value


def port_number(value: str) -> int:
    """Option type: a port, 0 to 65535."""
    if re.fullmatch(r"[0-9]{1,5}", value) and int(value) <= 65535:
        return int(value)
    raise argparse.ArgumentTypeError(f"{value!r} must be a number from 0 to 65535")


def milliseconds(value: str) -> float:
    """Option type: milliseconds, 0 to 1000."""
    try:
        if 0 <= float(value) <= 1000:
            return float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{value!r} must be a number from 0 to 1000")
