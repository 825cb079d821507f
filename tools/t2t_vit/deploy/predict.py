"""The command predict.py: classify image files."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from t2t_vit.common.errors import UserError, printable
from t2t_vit.common.files import atomic_path, check_outputs, display_path, write_text
from t2t_vit.common.logger import above_progress_bars, log, progress_bar, setup_logging
from t2t_vit.config import resolve
from t2t_vit.data.images import MOST_BYTES, ImageError, load_image, reading
from t2t_vit.data.index import EXTENSIONS, image_files
from t2t_vit.data.transforms import EvalTransform, views_of
from t2t_vit.deploy.engines import Predictor, to_input
from t2t_vit.deploy.open_model import OpenedModel, open_model

DEFAULT_IMAGE = "lit_data/val/3/0045.png"


def predict(args: argparse.Namespace, cfg: CfgNode) -> int:
    """Classify the images of a command line, print the classes and write the JSON files. Returns the exit status."""
    setup_logging(aside=True)  # stdout is for the results
    if args.top_k < 1:
        raise UserError(f"--top-k is {args.top_k} but must be 1 or more")
    if args.embeddings and (args.json or args.json_ids):
        raise UserError("--embeddings writes features, not classes: leave out --json and --json-ids")
    if args.embeddings and cfg.VAL.TTA:
        raise UserError(f'--embeddings computes the features of one view, but VAL.TTA is {cfg.VAL.TTA}: set VAL.TTA ""')
    paths = find_images(args.words)
    check_outputs((args.json, args.json_ids, args.embeddings), [*args.inputs, *paths])
    features = bool(args.embeddings)
    parallel = min(len(paths), cfg.VAL.BATCH_SIZE) > 1
    opened = open_model(args, cfg, weights_only=features, with_head=not features, parallel=parallel)
    if not args.weights_named:
        log.info("note: %s", opened)
    if args.embeddings:
        return write_embeddings(args.embeddings, opened, paths)
    results, size = {}, opened.cfg.VAL.BATCH_SIZE
    for start in progress_bar(range(0, len(paths), size), desc="predict"):
        batch = predict_batch(opened.predictor, paths[start : start + size], opened.cfg, args.top_k)
        with above_progress_bars():
            print_results(batch, single=len(paths) == 1)
        results |= batch
    if args.json:
        write_text(args.json, json.dumps(results, indent=1) + "\n")
    if args.json_ids:
        ids = {path: result["class_id"] for path, result in results.items() if "class_id" in result}
        write_text(args.json_ids, json.dumps(ids, indent=1) + "\n")
    return print_errors(results)


def find_images(patterns: Sequence[str]) -> list[str]:
    """List the images that files, folders (searched recursively) and glob patterns name, without duplicates.

    Without patterns, returns the image that comes with the repository. A pattern that matches nothing stays in the list
    and is reported like an unreadable image. Raises UserError for a folder without images.
    """
    paths = []
    for pattern in patterns or [str(display_path(resolve(DEFAULT_IMAGE)))]:
        if pattern and Path(pattern).is_dir():
            found = image_files(pattern)
            if not found:
                raise UserError(f"no image ({', '.join(sorted(EXTENSIONS))}) in {pattern}")
        elif pattern and Path(pattern).exists():
            found = [pattern]
        else:
            found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        paths += found or [pattern]
    return list(dict.fromkeys(paths))


def predict_batch(predictor, paths, cfg, top_k):
    """Classify one batch of image files.

    Returns:
        {path: {"class_id", "name", "probability", "top": [the same three for each of the top K classes]}}, in the order
        of `paths`. For an image that cannot be read: {path: {"error": reason}}.
    """
    pixels, errors = read_images(paths, cfg, all_views=True)
    answers = classify(predictor, list(pixels.values()), top_k)
    results = {path: {**top[0], "top": top} for path, top in zip(pixels, answers)}
    return {path: results[path] if path in results else {"error": errors[path]} for path in paths}


class ImageReader:
    """Reads images that a user picks as a model sees them: uint8 (S, S, channels). May be called in several threads.

    `most_bytes` limits each decoded image. With `all_views` and VAL.TTA, an image is (V, S, S, channels).
    """

    def __init__(self, cfg: CfgNode, most_bytes: int = MOST_BYTES, all_views: bool = False) -> None:
        self.transform = EvalTransform(cfg).views if all_views else EvalTransform(cfg)
        self.options = {**reading(cfg, by_hand=True), "most_bytes": most_bytes}

    def __call__(self, path: str, data: bytes | None = None) -> np.ndarray:
        """Read the file `path`, or `data`, the contents of a file of this name. Raises ImageError."""
        return self.transform(load_image(path, **self.options, data=data))


def read_images(
    paths: Iterable[str], cfg: CfgNode, most_bytes: int = MOST_BYTES, all_views: bool = False
) -> tuple[dict, dict]:
    """Return ({path: the pixels that `ImageReader` gives}, {path: why it cannot be read})."""
    read = ImageReader(cfg, most_bytes, all_views)
    pixels, errors = {}, {}
    for path in paths:
        try:
            pixels[path] = read(path)
        except ImageError as error:
            errors[path] = str(error)
    return pixels, errors


def classify(predictor: Predictor, pixels: Sequence[np.ndarray], top_k: int) -> list[list[dict[str, Any]]]:
    """Return the top K classes of each image: [{"class_id", "name", "probability"}, ...].

    An image is uint8 (S, S, channels), or (V, S, S, channels) with the views of VAL.TTA, whose logits are averaged.
    """
    if not pixels:
        return []
    views = views_of(np.stack(pixels))
    logits = sum(predictor(to_input(view, predictor.metadata)) for view in views) / len(views)  # (B, K)
    return likeliest(logits, predictor.metadata.classes, top_k)


def likeliest(logits: np.ndarray, names: Sequence[str], top_k: int) -> list[list[dict[str, Any]]]:
    """Return the top K classes of each row of logits (B, number of classes), as `classify` does.

    Raises UserError if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise UserError("the model's outputs are not finite numbers: its weights are damaged, or training diverged")
    logits = logits.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return [
        [
            {"class_id": int(class_id), "name": names[class_id], "probability": round(float(row[class_id]), 6)}
            for class_id in np.argsort(-row, kind="stable")[:top_k]
        ]
        for row in probabilities
    ]


def write_embeddings(file: str, opened: OpenedModel, paths: Sequence[str]) -> int:
    """Write pooled features to an .npz file: `embeddings` (N, C) float32, `files` (N). Returns the exit status.

    The opened model has no head. Images that cannot be read are listed on stderr and are not in the file.
    """
    results, size = {}, opened.cfg.VAL.BATCH_SIZE
    for start in progress_bar(range(0, len(paths), size), desc="predict"):
        pixels, errors = read_images(paths[start : start + size], opened.cfg)
        results |= {path: {"error": reason} for path, reason in errors.items()}
        if pixels:
            images = to_input(np.stack(list(pixels.values())), opened.predictor.metadata)
            results |= {path: {"features": row} for path, row in zip(pixels, opened.predictor(images))}
    features = {path: result["features"] for path, result in results.items() if "features" in result}
    if features:
        table = np.stack(list(features.values()))  # (N, C)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, embeddings=table, files=np.array(list(features)))
        print(printable(f"{file}: {table.shape[0]} x {table.shape[1]} features"))
    return print_errors(results)


def print_results(results, single):
    """Print one line per image; for a single image, its top classes and `class_id is: N`."""
    for path, result in results.items():
        if "error" in result:
            continue
        if single:
            print(printable(path))
            for entry in result["top"]:
                print(f"  {entry['probability']:.4f}  {entry['class_id']:>4}  {printable(entry['name'])}")
            print(f"class_id is: {result['class_id']}")
        else:
            line = f"{path} (class: {result['class_id']}) {result['name']}, prob: {result['probability']:.4f}"
            print(printable(line))


def print_errors(results):
    """Print the images that could not be read to stderr. Returns the exit status."""
    errors = [result["error"] for result in results.values() if "error" in result]
    for error in errors:
        print(f"error: {printable(error)}", file=sys.stderr)
    if errors and len(results) > 1:
        print(f"error: {len(errors)} of {len(results)} images could not be read", file=sys.stderr)
    return 1 if errors else 0
