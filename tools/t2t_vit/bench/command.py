"""Runs a benchmark: chooses the configs, prints the machine, writes the JSON file."""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import re
import signal
import zlib
from pathlib import Path

import paddle
from yacs.config import CfgNode

from t2t_vit.bench.data import benchmark_data
from t2t_vit.bench.growth import benchmark_growth
from t2t_vit.bench.infer import benchmark_infer
from t2t_vit.bench.model import benchmark_model
from t2t_vit.bench.report import Report
from t2t_vit.bench.serve import benchmark_serve
from t2t_vit.bench.sweep import name_of
from t2t_vit.bench.train import benchmark_train
from t2t_vit.cli import overrides
from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_outputs
from t2t_vit.common.logger import log, setup_logging
from t2t_vit.common.runtime import asked_threads, cores
from t2t_vit.config import load_config, with_open_keys
from t2t_vit.models.zoo import family_of, list_models
from t2t_vit.parallel import processes

GROWTH_MODELS = ("t2t_vit_14", "t2t_vit_t_14")  # the same backbone behind a performer and a transformer
MEASURE = {
    "data": benchmark_data,
    "model": benchmark_model,
    "train": benchmark_train,
    "infer": benchmark_infer,
    "serve": benchmark_serve,
    "growth": benchmark_growth,
}
PACKAGES = ("numpy", "pillow", "simplejpeg", "cykooz.resizer", "onnxruntime", "openvino", "nncf", "torch")


def run_benchmark(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Run the benchmark that the options describe, print the results and write --json. Raises UserError."""
    check_outputs([args.json, args.plot], args.inputs)
    processes.setup(cfg)
    setup_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    cfgs = [cfg] if args.benchmark == "data" else chosen_configs(args, cfg)
    if "threads" in args:
        args.threads = args.threads or default_threads(args.benchmark)
    machine = describe_machine()
    log.info("machine: {cpu}, {cores} cores, device {device}".format(**machine))
    log.info("versions: %s", ", ".join(map(" ".join, machine["versions"].items())))
    is_resumed = args.benchmark not in ("data", "model")  # which are quick
    report = Report(args.json, {"machine": machine, "options": describe_options(args, cfgs)}, is_resumed)
    MEASURE[args.benchmark](args, cfgs, report)
    report.write()


def describe_machine():
    """Return the processor, cores, device, and the versions of Paddle and the installed `PACKAGES`."""
    cpu, versions = platform.processor() or platform.machine(), {"paddle": paddle.__version__}
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1] if found else cpu
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py")))
    versions["sources"] = f"{zlib.crc32(sources):08x}"  # the code that is measured
    return {"cpu": cpu, "cores": cores(), "device": paddle.get_device(), "versions": versions}


def describe_options(args, cfgs):
    """Return the options that the figures depend on, and a checksum of each config."""
    names = ("benchmark", "rounds", "threads", "batch_size", "batch_sizes", "image_sizes", "engines", "precisions",
             "baseline", "clients", "opts")  # fmt: skip
    variables = {name: value for name, value in os.environ.items() if name.startswith(("MKL_", "FLAGS_"))}
    checksums = {name_of(cfg): zlib.crc32(cfg.dump().encode()) for cfg in cfgs}
    options = {name: getattr(args, name) for name in names if name in args}
    return {**options, **variables, "checksum of config": checksums}


def default_threads(benchmark):
    """Return a list with the number of threads of this process; for growth 1, 2, 4 and so on up to that number."""
    most = asked_threads()
    return sorted({*(2**power for power in range(most.bit_length())), most}) if benchmark == "growth" else [most]


def chosen_configs(args, cfg):
    """Return the configs of the named models, or [cfg] if no model is named."""
    names = args.words
    if names and args.config:
        raise UserError(f"give models ({' '.join(names)}) or --config, not both")
    for name in set(names) - {"all"}:
        try:
            family_of(name)
        except ValueError as error:
            hint = "give a config with --config" if name.endswith((".yaml", ".yml")) else "or all?"
            raise UserError(f"{error} ({hint})") from None
    names = list_models() if "all" in names else names
    if args.benchmark == "growth" and not (names or args.config):
        names = GROWTH_MODELS
    return [with_open_keys(load_config(f"configs/{name}.yaml", overrides(args)), {}) for name in names] or [cfg]
