"""What the commands share: options, environment, and how a failure is told.

A command calls `run(main, parser)`; paddle is imported only inside `main`, after `run` has set what paddle reads
from the environment at import.
"""

import argparse
import contextlib
import importlib.util
import io
import itertools
import os
import re
import shutil
import signal
import sys
import time
import warnings

from t2t_vit.common.allocator import keep_freed_memory
from t2t_vit.common.errors import UserError, one_line
from t2t_vit.common.interrupts import ignore_interrupts
from t2t_vit.spellings import take_data_folder, translate

_REQUIRED = {
    "paddle": "PaddlePaddle",
    "yacs": "yacs",
    "yaml": "PyYAML",
    "numpy": "NumPy",
    "PIL": "Pillow",
    "tqdm": "tqdm",
}
_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$|-nan$", re.IGNORECASE)
_DEFAULT_CONFIG = "configs/lit_data.yaml"
_EPILOG = """KEY VALUE pairs override any key of the config, e.g. TRAIN.EPOCHS 100; tools/t2t_vit/config.py
lists all keys with their units and defaults. Exit status: 0 done, 1 a failure told in one line, 2 an
unknown option or a KEY without a VALUE."""


def common_parser(description, batch_size_key):
    """Argument parser with the options that every command has.

    Args:
        description: first line of --help.
        batch_size_key: config key that --batch-size sets, e.g. "TRAIN.BATCH_SIZE".
    """
    parser = argparse.ArgumentParser(description=description, epilog=_EPILOG)
    parser._negative_number_matcher = _NEGATIVE_NUMBER  # argparse's own takes -1e-3 for an option
    parser.add_argument(
        "--config",
        type=not_empty,
        metavar="FILE",
        help=f"YAML config; default: config.yaml beside --pretrained, else {_DEFAULT_CONFIG}",
    )
    parser.add_argument(
        "--data-path",
        type=not_empty,
        metavar="DIR",
        help="folder with train/ and val/, or of class folders with DATA.VAL_FRACTION (DATA.PATH)",
    )
    parser.add_argument("--batch-size", metavar="N", help=f"images per process and step ({batch_size_key})")
    parser.add_argument(
        "--output", type=not_empty, metavar="DIR", help="folder of the run folders and their logs (OUTPUT, LOG)"
    )
    parser.add_argument(
        "--pretrained",
        type=not_empty,
        metavar="FILE|URL",
        help="weights: .pdparams, PyTorch's .pth or .safetensors of this or another program (MODEL.PRETRAINED)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, gpu or gpu:N; default: a GPU if there is one (DEVICE)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override config keys")
    parser.set_defaults(batch_size_key=batch_size_key, opens_run=False, engine=None)
    return parser


def add_engine_option(parser):
    """--engine, of the commands that predict."""
    parser.set_defaults(opens_run=True)
    parser.add_argument(
        "--engine",
        choices=("paddle", "inference", "onnxruntime", "openvino"),
        help="paddle: the model itself; inference (Paddle Inference), onnxruntime, openvino: a file of export.py, the "
        "run's own if --pretrained names none; default: what reads the file of --pretrained",
    )


def add_evaluation_options(parser):
    """--engine and --split, of the commands that evaluate."""
    add_engine_option(parser)
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="images to evaluate on; train: the training images under the evaluation transform",
    )


def not_empty(value):
    """Type of an option whose value may not be the empty string."""
    if not value:
        raise argparse.ArgumentTypeError("is empty")
    return value


def json_file(value):
    """Type of an option that names a JSON file to write: not the picture or the weights beside it, by mistake."""
    if os.path.splitext(not_empty(value))[1].lower() not in ("", ".json"):
        raise argparse.ArgumentTypeError(f"{value} must end in .json")
    return value


def first_word(kind, choices):
    """`split_words` of `run` for a command whose first word is one of `choices`, a `kind` of something."""

    def split_words(words):
        if not words or words[0] not in choices:
            given = f"there is no {kind} {words[0]!r}" if words else f"no {kind} given"
            raise UserError(f"{given}; the first word must be {' or '.join(choices)}")
        return words[0], words[1:]

    return split_words


def split_images(words):
    """`split_words` of `run` for images among KEY VALUE pairs: a KEY starts like a config key and is not a file."""
    from t2t_vit.config import starts_like_a_key

    images, pairs = [], []
    words = iter(words)
    for word in words:
        if starts_like_a_key(word) and not os.path.exists(word):
            pairs += [word, *itertools.islice(words, 1)]
        else:
            images.append(word)
    return images, pairs


def run(main, parser, argv=None, split_words=None, needs_paddle=True, imports_paddle=True):
    """Parse the command line, load the config, call `main(args, cfg)` and exit with its status.

    `split_words` divides the words that are no options into (args.words, KEY VALUE words). A command that
    `needs_paddle` is told if it is missing, and waits for its import unless `main` imports it.
    """

    def work(args):
        args.started = time.monotonic()
        require_packages(needs_paddle)
        from t2t_vit.config import load_config

        if split_words:
            args.words, args.opts = split_words(args.opts)
        else:
            take_data_folder(args)
        check_pairs(parser, args)
        path = _config_path(args)
        cfg = load_config(path, overrides(args))
        if args.opens_run and not (args.config or cfg.MODEL.PRETRAINED) and (own := _config_of_run(cfg)):
            path = own
            cfg = load_config(path, overrides(args))
        args.inputs = _files_read(path, cfg)
        args.weights_named = bool(_named_on_command_line(args))
        args.pretrained = cfg.MODEL.PRETRAINED if _named_on_command_line(args) else _best_beside(path)
        if needs_paddle and imports_paddle:
            import_paddle(cfg.DEVICE)
        return main(args, cfg)

    exit_with(lambda: _parsed(parser, sys.argv[1:] if argv is None else list(argv)), work)


def _parsed(parser, words):
    """The options of a command line; what follows a -- is no option, whatever it begins with."""
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_intermixed_args(translate(words[:end], parser))
    args.opts += words[end + 1 :]
    return args


def check_pairs(parser, args):
    """Exit with status 2 if the last KEY has no VALUE, or a KEY=VALUE is given."""
    for key in args.opts[::2]:
        if re.match(r"[A-Z0-9_.]+=", key):
            parser.error(f"write {key.replace('=', ' ', 1)}: KEY VALUE pairs have a blank between them")
    if len(args.opts) % 2:
        parser.error(f"KEY VALUE pairs expected, but {args.opts[-1]!r} has no value (configs end in .yaml)")


def exit_with(parse, work):
    """Exit with the status that `work(args)` returns, where `args = parse()`; a failure is told in one line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not a notebook's
            stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    args = parse()
    try:
        _check_current_folder()
        status = work(args)
    except BrokenPipeError:  # whoever read the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    except KeyboardInterrupt:
        ignore_interrupts()
        status = _fail("interrupted", args.debug)
    except (UserError, OSError) as error:
        status = _fail(one_line(error), args.debug)
    ignore_interrupts()
    sys.exit(status or 0)


def _check_current_folder():
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder has been removed; cd to another one") from None


def _config_path(args):
    if args.config:
        return args.config
    if args.pretrained:
        folder = os.path.dirname(args.pretrained)
        folders = [folder, os.path.dirname(folder)] if os.path.basename(folder) == "export" else [folder]
        for path in (os.path.join(folder, "config.yaml") for folder in folders):
            if os.path.isfile(path):
                return path
    return _DEFAULT_CONFIG


def _files_read(config, cfg):
    """Files that a config and a command line name to be read, whether they are there or not."""
    from t2t_vit.config import best_weights, find_config, resolve

    named = [cfg.MODEL.PRETRAINED, cfg.DISTILL.WEIGHTS, cfg.DISTILL.TEACHER, cfg.DATA.CLASSES]
    lists = [os.path.join(cfg.DATA.PATH, name) for name in (cfg.DATA.TRAIN_LIST, cfg.DATA.VAL_LIST, "classes.txt")]
    best = best_weights(cfg)
    weights = [cfg.MODEL.PRETRAINED + ".pdparams", best, best.with_name("classes.txt"), best.with_name("config.yaml")]
    return [find_config(config), *(resolve(path) for path in [*filter(None, named), *lists, *weights])]


def _config_of_run(cfg):
    """config.yaml of the run that a command without --config and weights means; None if there is none."""
    from t2t_vit.config import best_weights

    path = best_weights(cfg).with_name("config.yaml")
    return str(path) if path.is_file() and path.with_name("best.pdparams").is_file() else None


def overrides(args):
    """(key, value) pairs of the command line; its paths count from the current folder."""
    flags = {
        "DATA.PATH": args.data_path,
        "OUTPUT": args.output,
        "LOG": args.output,
        "MODEL.PRETRAINED": args.pretrained,
    }
    pairs = [(key, absolute(path)) for key, path in flags.items() if path]
    pairs += [(args.batch_size_key, args.batch_size)] if args.batch_size else []
    pairs += [("DEVICE", args.device)] if args.device else []
    for key, value in zip(args.opts[::2], args.opts[1::2]):
        is_path = key in ("DATA.PATH", "DATA.CLASSES", "OUTPUT", "LOG", "MODEL.PRETRAINED", "DISTILL.WEIGHTS")
        is_path = is_path or key == "DISTILL.TEACHER" and value.endswith((".yaml", ".yml"))
        pairs.append((key, absolute(value) if is_path and value else value))
    return pairs


def absolute(path):
    """A path or URL of the command line for a config, whose relative paths count from the repository root."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _named_on_command_line(args):
    return args.pretrained or "MODEL.PRETRAINED" in args.opts[::2]


def _best_beside(config):
    """Weights of the run that a run folder's config.yaml belongs to, even if the folder was renamed since."""
    best = os.path.join(os.path.dirname(os.path.abspath(config)), "best.pdparams")
    return best if os.path.basename(config) == "config.yaml" and os.path.isfile(best) else None


def require_packages(needs_paddle=True):
    """Raise UserError naming the packages that are not installed; an exported model may do without PaddlePaddle."""
    modules = [module for module in _REQUIRED if needs_paddle or module != "paddle"]
    missing = [_REQUIRED[module] for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not installed in {sys.executable}; "
            "`source scripts/env.sh` makes and enters an environment that has all it needs"
        )


def import_paddle(device, several=False):
    """Import paddle with settings that it reads only at import, leaving those that the user made.

    OMP_NUM_THREADS becomes this process's share of the cores, unless it is set. Unless this may be one of `several`
    processes, it forgets what Paddle's launcher would tell them.

    Raises UserError if paddle is missing, or OMP_NUM_THREADS no number of threads.
    """
    from t2t_vit.common import ranks
    from t2t_vit.common.threads import asked_threads, cores

    require_packages()
    asked_threads()  # an impossible number is told before OpenMP does
    if not several:
        ranks.forget()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // ranks.local_size())))
    os.environ.setdefault("GLOG_minloglevel", "2")
    if device == "cpu" or not (device or shutil.which("nvidia-smi")):
        # Strided views make every CPU matmul copy its transposed input again: 5.3 against 8.7 images/s (t2t_vit_7).
        os.environ.setdefault("FLAGS_use_stride_kernel", "0")
        # A matrix product with a result of 38 MB takes 9 ms in memory that is there, and 40 to 70 in new memory.
        keep_freed_memory(2048)
    import_quietly()


def import_quietly():
    """Import paddle without its warnings and without its handlers of signals."""
    # Paddle warns of more than one OpenMP thread and of a missing ccache, on each import.
    # Signals wait for the end of the import, which would turn Ctrl-C into an ImportError; after it, Paddle's own
    # handlers, which print a C++ trace, are gone.
    waiting = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import paddle

        paddle.disable_signal_handler()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waiting)


def _fail(message, debug):
    if debug:
        raise
    print(f"error: {message}", file=sys.stderr)
    return 1
