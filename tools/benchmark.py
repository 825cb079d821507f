"""Measure: python tools/benchmark.py data|model|train|infer|serve|growth [MODEL ...|all] [--json FILE] [KEY VALUE ...].

`data` compares the input pipeline of a config with a plain one, `model` counts parameters and multiplications, `train`
and `infer` time whole steps and batches, `serve` loads a server, `growth` plots how inference time grows with the
input. Everything that is compared is timed alternately in one run, because the speed of a machine drifts. Do not
compare figures of two runs.
"""

import argparse
import sys

from t2t_vit.bench.options import BENCHMARKS, benchmark_parser, split_models
from t2t_vit.cli import run


def measure(args, cfg):
    from t2t_vit.bench.command import run_benchmark  # imports Paddle, which `run` prepares

    run_benchmark(args, cfg)


def parser():
    parser = argparse.ArgumentParser(
        description="Measure models and the input pipeline.",
        usage="benchmark.py BENCHMARK [MODEL ...|all] [options] [KEY VALUE ...]",
        epilog="benchmark.py BENCHMARK --help lists the options of a benchmark.",
    )
    described = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    parser.add_argument("benchmark", choices=BENCHMARKS, metavar="BENCHMARK", help=described)
    return parser


def main(words):
    kind = parser().parse_args(words[:1]).benchmark
    run(measure, benchmark_parser(kind), words[1:], split_words=None if kind == "data" else split_models)


if __name__ == "__main__":
    main(sys.argv[1:])
