"""What all commands share: options, config, the import of Paddle, and failures in one line.

A command calls `run(main, parser())`. `run` parses the options, loads the config, imports Paddle and calls
`main(args, cfg)`, which imports one function of the package and calls it. Importing this module does not import Paddle.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from t2t_vit.common import ranks
from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.runtime import ignore_interrupts, import_paddle, missing_packages, not_installed

# Check this before importing config, which needs yacs: a missing package gives one error line, not a traceback. Paddle
# is checked when it is imported, because exported models run without it.
if set(missing_packages()) - {"PaddlePaddle"}:
    sys.exit(f"error: {not_installed(missing_packages())}")

from t2t_vit import config  # noqa: E402
from t2t_vit.data.layout import with_data_name  # noqa: E402
from t2t_vit.options import DEFAULT_CONFIG  # noqa: E402
from t2t_vit.parallel.failure_monitor import FailureMonitor  # noqa: E402
from t2t_vit.spellings import take_data_folder, translate  # noqa: E402
from t2t_vit.weights import published  # noqa: E402

if TYPE_CHECKING:
    from yacs.config import CfgNode


def split_images(words: list[str]) -> tuple[list[str], list[str]]:
    """`split_words` for `run` that separates images from KEY VALUE pairs. A KEY starts with a section of the config."""
    images, pairs = [], []
    rest = iter(words)
    for word in rest:
        if config.starts_like_a_key(word) and not os.path.exists(word):
            pairs += [word, *itertools.islice(rest, 1)]
        else:
            images.append(word)
    return images, pairs


def run(
    main: Callable[[argparse.Namespace, CfgNode], int | None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
    split_words: Callable[[list[str]], tuple] | None = None,
    paddle: bool = True,
    processes: str = "one",
) -> NoReturn:
    """Parse the command line, load the config, call `main(args, cfg)` and exit with the status that it returns.

    Args:
        main: gets the options and the frozen config. `args` also has `started` (time.monotonic()), `inputs` (files that
            the options and the config name), `pretrained` (weights file or None), `weights_named` (whether the command
            line names it), `notes` (of `load_config`) and `monitor` (the FailureMonitor).
        parser: from `common_parser`.
        argv: words of the command line; default: those of this process.
        split_words: function that splits the positional words into (args.words, KEY VALUE words).
        paddle: whether to import Paddle before `main`. Otherwise `main` calls `import_paddle` if it needs it.
        processes: "one": ignore the variables of Paddle's launcher. "several": this may be one of several processes,
            and all stop if one fails; without a launcher it is one. "checked": the same, but inconsistent variables of
            a launcher are an error.
    """

    def work(args):
        args.started = time.monotonic()
        cfg = _load(args, parser, split_words)
        _check_launcher(processes)
        with FailureMonitor() as args.monitor:
            if paddle:
                import_paddle(cfg.DEVICE, several=processes != "one")
            return main(args, cfg)

    exit_with(lambda: parse_words(sys.argv[1:] if argv is None else argv, parser), work)


def _check_launcher(processes):
    """Check or remove the variables of Paddle's launcher, see `processes` of `run`."""
    try:
        if processes != "one":
            ranks.check()
            return
    except UserError:  # the variables come from another program
        if processes == "checked":
            raise
    ranks.forget()


def _load(args, parser, split_words):
    """Load the config of a command line, and add the attributes to `args` that `run` documents."""
    if split_words:
        args.words, args.opts = split_words(args.opts)
    else:
        take_data_folder(args)
    check_pairs(parser, args)
    path = _config_path(args)
    args.notes = []
    cfg = with_data_name(config.load_config(path, overrides(args), args.notes))
    if args.opens_run and not (args.config or cfg.MODEL.PRETRAINED):
        own = config.best_weights(cfg).with_name("config.yaml")
        if own.is_file() and _best_beside(own):
            path, cfg = own, with_data_name(config.load_config(own, overrides(args)))
    args.inputs = _files_read(args, path, cfg)
    args.weights_named = bool(args.pretrained or "MODEL.PRETRAINED" in args.opts[::2])
    args.pretrained = cfg.MODEL.PRETRAINED if args.weights_named else _best_beside(path)
    # Commands that use weights take from them what the config leaves open.
    return cfg if args.opens_run or args.trains else config.with_open_keys(cfg, {})


def parse_words(words: list[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse a command line. Words after -- are never options."""
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_intermixed_args(translate(words[:end], parser))
    args.opts += words[end + 1 :]
    return args


def check_pairs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 if the last KEY has no VALUE, or a KEY=VALUE is given."""
    for key in args.opts[::2]:
        if re.match(r"[A-Z0-9_.]+=", key):
            parser.error(f"write {key.replace('=', ' ', 1)}: KEY and VALUE are separated by a space")
    if len(args.opts) % 2:
        parser.error(f"KEY VALUE pairs expected, but {args.opts[-1]!r} has no value (config files end in .yaml)")


def exit_with(parse: Callable[[], argparse.Namespace], work: Callable[[argparse.Namespace], int | None]) -> NoReturn:
    """Call `work(parse())` and exit with the status that it returns; an error is one line on stderr and status 1."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  closed by >&-
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # streams of notebooks lack it
            stream.reconfigure(errors="backslashreplace")  # file names may contain any bytes
    args = parse()
    try:
        _check_current_folder()
        status = work(args)
    except BrokenPipeError:  # the program that reads the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    except (UserError, OSError, KeyboardInterrupt) as error:
        ignore_interrupts()
        if args.debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 1
    ignore_interrupts()
    sys.exit(status or 0)


def _check_current_folder():
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder has been removed; cd to another one") from None


def _config_path(args):
    if args.config or not args.pretrained:
        return args.config or DEFAULT_CONFIG
    weights = published.meaning(args.pretrained, Path.cwd())
    if args.opens_run and weights in published.table():
        return f"configs/{published.table()[weights].config}.yaml"
    folder = Path(weights).parent
    folders = [folder, folder.parent] if folder.name == "export" else [folder]
    return next(filter(Path.is_file, (folder / "config.yaml" for folder in folders)), DEFAULT_CONFIG)


def _files_read(args, path, cfg):
    """List the input files that the config and the command line name, and those beside them. They may not exist."""
    path, best = config.find_config(path).absolute(), config.best_weights(cfg)
    named = [cfg.MODEL.PRETRAINED, cfg.DISTILL.WEIGHTS, cfg.DISTILL.TEACHER, config.class_list(cfg)]
    lists = [os.path.join(cfg.DATA.PATH, name) for name in (cfg.DATA.TRAIN_LIST, cfg.DATA.VAL_LIST, "classes.txt")]
    folders = {os.path.dirname(file) for file in (path, best, cfg.MODEL.PRETRAINED) if file}
    beside = [os.path.join(folder, name) for folder in folders for name in (best.name, "classes.txt", "config.yaml")]
    exported = [os.path.join(cfg.OUTPUT, cfg.NAME, "export", f"{cfg.NAME}.json")] if "engine" in args else []
    files = [*filter(None, named), *lists, *beside, *exported, cfg.MODEL.PRETRAINED + ".pdparams"]
    return [path, *map(config.resolve, files)]


def overrides(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the (key, value) pairs of the command line, with absolute paths."""
    flags = {
        "DATA.PATH": args.data_path and absolute(args.data_path),
        "OUTPUT": args.output and absolute(args.output),
        "LOG": args.output and absolute(args.output),
        "MODEL.PRETRAINED": args.pretrained and published.meaning(args.pretrained, Path.cwd()),
        args.batch_size_key: args.batch_size,
        "DEVICE": args.device,
    }
    pairs = [(key, value) for key, value in flags.items() if value]
    for key, value in zip(args.opts[::2], args.opts[1::2]):
        is_path = key in ("DATA.PATH", "DATA.CLASSES", "OUTPUT", "LOG")
        is_path = is_path or key == "DISTILL.TEACHER" and value.endswith((".yaml", ".yml"))
        if value and key in ("MODEL.PRETRAINED", "DISTILL.WEIGHTS"):
            value = published.meaning(value, Path.cwd())
        elif is_path and value and value not in config.CLASS_LISTS:
            value = absolute(value)
        pairs.append((key, value))
    return pairs


def absolute(path: str) -> str:
    """Make a path from the command line absolute; URLs stay as they are."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _best_beside(path):
    """Return best.pdparams beside a config.yaml, or None if it does not exist. The folder may have any name."""
    best = Path(path).absolute().with_name("best.pdparams")
    return str(best) if Path(path).name == "config.yaml" and best.is_file() else None
