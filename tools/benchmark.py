"""Measure: python tools/benchmark.py data|model|train|infer|growth [MODEL ...|all] [--json FILE] [KEY VALUE].

`data` times the input pipeline of a config beside a plain one, `model` counts parameters and multiplications, `train`
and `infer` time whole steps and batches, `growth` draws how inference grows with its input. What is compared takes
turns in the same run: where a machine drifts or does other work too, only such ratios mean something.
"""

import argparse
import itertools
import json
import sys

from t2t_vit.cli import common_parser, first_word, json_file, overrides, run

# What each benchmark measures, and the options that it has beside those of every command.
BENCHMARKS = {
    "data": ("the input pipeline", ("images", "rounds", "workers")),
    "model": (
        "parameters, multiplications and memory",
        ("memory", "batch_sizes", "image_sizes", "threads", "markdown"),
    ),
    "train": ("training steps", ("rounds", "batch_sizes", "image_sizes", "threads", "markdown")),
    "infer": ("inference", ("rounds", "batch_sizes", "image_sizes", "threads", "markdown", "engines", "precisions")),
    "growth": (
        "how inference grows with images, batches and threads",
        ("rounds", "batch_sizes", "image_sizes", "threads", "markdown", "plot"),
    ),
}

ENGINES = ("paddle", "inference", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
GROWTH_MODELS = ("t2t_vit_14", "t2t_vit_t_14")  # the same but for the T2T module: performer, transformer


def main(args, cfg):
    from t2t_vit.bench.data import benchmark_data
    from t2t_vit.bench.growth import benchmark_growth
    from t2t_vit.bench.infer import benchmark_infer
    from t2t_vit.bench.machine import ENGINE_PACKAGES, describe_machine, machine_lines
    from t2t_vit.bench.model import benchmark_model
    from t2t_vit.bench.train import benchmark_train
    from t2t_vit.common.files import check_outputs, write_text
    from t2t_vit.common.logger import log, setup_logging
    from t2t_vit.parallel import processes

    kind, names = args.words
    check_options(args, kind)
    check_outputs([args.json, args.plot if kind == "growth" else None], args.inputs)
    processes.setup(cfg)
    setup_logging()
    if kind == "data":
        report = benchmark_data(args, cfg)
    else:
        cfgs = chosen_configs(args, cfg, kind, names)
        report = {"machine": describe_machine(("numpy", *ENGINE_PACKAGES))}
        for line in machine_lines(report["machine"]):
            log.info(line)
        measure = {
            "model": benchmark_model,
            "train": benchmark_train,
            "infer": benchmark_infer,
            "growth": benchmark_growth,
        }[kind]
        report |= measure(args, cfgs)
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")


def check_options(args, kind):
    """Raise UserError for an option that the benchmark has not, or an impossible value; fill in the defaults."""
    from t2t_vit.common.errors import UserError

    for name in {name for _, names in BENCHMARKS.values() for name in names}:
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if name not in BENCHMARKS[kind][1]:
            raise UserError(f"{flag} is no option of benchmark.py {kind}")
        least = 0 if name == "workers" else 1
        numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        most = {"image_sizes": 4096, "threads": 1024}.get(name, sys.maxsize)
        if any(not least <= number <= most for number in numbers):
            allowed = f"{least} or more" if most == sys.maxsize else f"{least} to {most}"
            raise UserError(f"{flag} is {','.join(map(str, numbers))} but must be {allowed}")
        if isinstance(value, list):
            setattr(args, name, list(dict.fromkeys(value)))
    if kind == "model" and args.data_path and not args.memory:
        raise UserError("--data-path is no option of benchmark.py model, which reads no pictures without --memory")
    args.images = args.images or 256
    args.rounds = args.rounds or 5
    args.engines = args.engines or ["paddle"]
    args.precisions = args.precisions or ["fp32"]
    args.plot = args.plot or "growth.png"
    args.threads = args.threads or default_threads(kind)


def default_threads(kind):
    """As many as this process has, which `run` has set; to see growth, doubling up to them."""
    from t2t_vit.common.runtime import asked_threads

    most = asked_threads()
    return sorted({*(2**power for power in range(most.bit_length())), most}) if kind == "growth" else [most]


def chosen_configs(args, cfg, kind, names):
    """The config of the command line, or those of the named models."""
    from t2t_vit.common.errors import UserError
    from t2t_vit.config import load_config
    from t2t_vit.models.zoo import family_of, list_models

    if names and args.config:
        raise UserError(f"give models ({' '.join(names)}) or --config, not both")
    for name in names:
        try:
            name == "all" or family_of(name)
        except ValueError as error:
            hint = "a config is given by --config" if name.endswith((".yaml", ".yml")) else "or all?"
            raise UserError(f"{error} ({hint})") from None
    names = list_models() if "all" in names else names
    if kind == "growth" and not (names or args.config):
        names = GROWTH_MODELS
    return [load_config(f"configs/{name}.yaml", overrides(args)) for name in names] or [cfg]


def numbers(text):
    """Type of an option that takes numbers with commas between them."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas between them") from None


def one_of(choices):
    """Type of an option that takes some of `choices` with commas between them."""

    def words(text):
        if unknown := [word for word in text.split(",") if word not in choices]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return text.split(",")

    return words


def split_words(words):
    """((benchmark, model names), KEY VALUE words)."""
    from t2t_vit.config import starts_like_a_key

    kind, words = first_word("benchmark", BENCHMARKS)(words)
    named = 0 if kind == "data" else len(list(itertools.takewhile(lambda word: not starts_like_a_key(word), words)))
    return (kind, words[:named]), words[named:]


def parser():
    described = "; ".join(f"{kind}: {what}" for kind, (what, _) in BENCHMARKS.items())
    parser = common_parser(f"Measure. {described}.", batch_size_key="TRAIN.BATCH_SIZE")
    parser.usage = f"benchmark.py {{{','.join(BENCHMARKS)}}} [MODEL ...|all] [options] [KEY VALUE ...]"
    add = parser.add_argument
    add("--rounds", type=int, metavar="R", help="timed rounds; default 5")
    add("--images", type=int, metavar="N", help="data: images in a round; default 256")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="data: loader processes; default DATA.NUM_WORKERS if given, else one per core",
    )
    add(
        "--batch-sizes", type=numbers, metavar="N,N", help="one after the other; default --batch-size if given, else 16"
    )
    add("--image-sizes", type=numbers, metavar="N,N", help="pixels, one after the other; default the config's")
    add("--threads", type=numbers, metavar="N,N", help="by turns; default OMP_NUM_THREADS if set, else one per core")
    add(
        "--engines",
        type=one_of(ENGINES),
        metavar="E,E",
        help=f"infer: any of {','.join(ENGINES)}, by turns; default paddle",
    )
    add(
        "--precisions",
        type=one_of(PRECISIONS),
        metavar="P,P",
        help=f"infer: any of {','.join(PRECISIONS)}; default fp32",
    )
    add("--memory", action="store_true", help="model: measure the memory of inference and training too")
    add("--plot", metavar="FILE", help="growth: picture to write, .png, .pdf or .svg; default growth.png")
    add("--markdown", action="store_true", help="print tables in Markdown")
    add("--json", type=json_file, metavar="FILE", help="write all figures as JSON, complete or not at all")
    return parser


if __name__ == "__main__":
    run(main, parser(), split_words=split_words)
