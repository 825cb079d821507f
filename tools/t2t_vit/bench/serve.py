"""The server of serve.py under load, beside the speed of its engine alone."""

import argparse
import itertools
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from t2t_vit.bench.infer import EAGER, FORMATS, offered
from t2t_vit.bench.load import measure_load, request_of
from t2t_vit.bench.process import Process
from t2t_vit.bench.rounds import interleave, spread, summary, table
from t2t_vit.bench.samples import training_samples
from t2t_vit.bench.sweep import COLUMNS, settings, title_of
from t2t_vit.common.errors import counted
from t2t_vit.common.logger import log
from t2t_vit.config import with_keys
from t2t_vit.deploy.export import export_model
from t2t_vit.deploy.open_model import open_model
from t2t_vit.options import WAIT_MS
from t2t_vit.serve.address import listen
from t2t_vit.serve.classifier import Classifier
from t2t_vit.serve.server import require_packages
from t2t_vit.weights import checkpoint
from t2t_vit.weights.build import build_model

SECONDS = 4  # of a round of each side, at least
BATCHES = 10  # in a round of the server, at least
SAMPLES = 64  # different pictures
_COLUMNS = {
    **COLUMNS,
    "engine images/s": lambda row: spread(row["engine_images_per_second"]),
    "requests/s": lambda row: spread(row["requests_per_second"]),
    "ratio": lambda row: f"{row['ratio']['median']:.2f}",
    "ms/request": lambda row: f"{row['milliseconds']['median']:.0f}",
    "95 %": lambda row: f"{row['milliseconds_p95']['median']:.0f}",
}
TITLES = ("model", "pixels", "batch", "threads", "engine", "precision", *list(_COLUMNS)[len(COLUMNS) :])

_classifier: Classifier  # of the server in this process


def benchmark_serve(args, cfgs, report):
    """Measure requests per second at all settings of the command line, and print the figures."""
    require_packages()
    pairs, missing = offered(args.engines, args.precisions)
    is_required = args.data_path or "DATA.PATH" in args.opts[::2]

    def measured(case):
        cfg, threads, (engine, precision) = case
        samples, cfg = training_samples(cfg, is_required, SAMPLES)
        # Without VAL.TTA, because the engine alone computes one view of a picture.
        cfg = with_keys(cfg, {"VAL.BATCH_SIZE": cfg.TRAIN.BATCH_SIZE, "VAL.TTA": ""})
        requests = [request_of(Path(sample).read_bytes()) for sample in samples.paths]
        labels = {"threads": threads, "engine": engine, "precision": precision}
        with tempfile.TemporaryDirectory() as folder:
            path = _model_file(cfg, folder, engine, precision)
            return [{**labels, **_measure(args, cfg, threads, engine, path, requests)}]

    cases = itertools.product(settings(args, cfgs), args.threads, pairs)
    units = {f"{title_of(cfg)}, {counted(threads, 'thread')}, {' '.join(pair)}": (cfg, threads, pair)
             for cfg, threads, pair in cases}  # fmt: skip
    rows = report.measure("serve", units, measured)
    log.info("")
    for line in table(TITLES, [[_COLUMNS[title](row) for title in TITLES] for row in rows], args.markdown):
        log.info(line)
    log.info("%d clients, each with one picture at a time; ratio: requests/s by engine images/s", args.clients)
    if missing:
        log.info("not supported: %s", ", ".join(missing))


def _model_file(cfg, folder, engine, precision):
    """Write a model with fresh weights for an engine. One image at a time if VAL.BATCH_SIZE is 1, else any number."""
    model = build_model(cfg)
    model.eval()
    if engine != EAGER:
        size = 1 if cfg.VAL.BATCH_SIZE == 1 else 0
        return export_model(model, cfg, folder, FORMATS[engine], precision, batch_size=size)[0]
    path = Path(folder, "best.pdparams")
    checkpoint.save(path, model.state_dict())
    return path


def _measure(args, cfg, threads, engine, path, requests):
    """Measure the engine and the server in turn. Both are in one process, with one model."""
    with Process(f"the server of {cfg.NAME}", cfg, threads) as process:
        port = process.run(start_server, cfg, engine, str(path))
        seconds = max(SECONDS, BATCHES * cfg.VAL.BATCH_SIZE / process.run(engine_speed, 1))
        sides = {
            "engine": lambda: process.run(engine_speed, SECONDS),
            "server": lambda: measure_load(port, requests, args.clients, seconds),
        }
        found = interleave(sides, args.rounds)
    rates = [each["rate"] for each in found["server"]]
    return {
        "model": cfg.NAME,
        "image_size": cfg.DATA.IMAGE_SIZE,
        "batch_size": cfg.VAL.BATCH_SIZE,
        "clients": args.clients,
        "engine_images_per_second": summary(found["engine"]),
        "requests_per_second": summary(rates),
        "ratio": summary([rate / alone for rate, alone in zip(rates, found["engine"])]),
        "milliseconds": summary([1000 * each["median"] for each in found["server"]]),
        "milliseconds_p95": summary([1000 * each["p95"] for each in found["server"]]),
    }


# --- In the process of the server ---


def start_server(cfg, engine, path):
    """Start the server of serve.py in a thread. Returns its port."""
    global _classifier
    import uvicorn  # optional

    from t2t_vit.serve.api import build_api  # imports fastapi, which is optional

    args = argparse.Namespace(engine=engine, pretrained=path, weights_named=True, opts=[])
    opened = open_model(args, cfg, parallel=True)
    _classifier = Classifier(opened, WAIT_MS / 1000)
    listener = listen("127.0.0.1", [0])
    config = uvicorn.Config(build_api(opened, _classifier, None), log_level="critical", access_log=False)
    threading.Thread(target=uvicorn.Server(config).run, args=([listener],), daemon=True).start()
    return listener.getsockname()[1]


def engine_speed(seconds):
    """Return the images per second of the engine alone, with as many calls at a time and images as the server's."""
    predictor, size = _classifier.batches.predictor, _classifier.batches.size
    shape = (size, predictor.metadata.channels, *predictor.metadata.image_size)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    predictor(images)
    start = time.perf_counter()

    def work(_):
        calls = 0
        while time.perf_counter() < start + seconds:
            predictor(images)
            calls += 1
        return calls

    with ThreadPoolExecutor(predictor.parallel) as pool:
        calls = sum(pool.map(work, range(predictor.parallel)))
    return calls * size / (time.perf_counter() - start)
