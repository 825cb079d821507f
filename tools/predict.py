"""Classify pictures: python tools/predict.py [IMAGE|FOLDER|GLOB ...] [--top-k K] [--json FILE] [KEY VALUE ...]."""

import glob
import itertools
import json
import sys
from pathlib import Path

from t2t_vit.cli import add_engine_option, common_parser, import_paddle, json_file, run

DEFAULT_IMAGE = "lit_data/val/3/0045.png"


def main(args, cfg):
    from t2t_vit.common.errors import UserError, printable
    from t2t_vit.common.files import check_outputs, display_path, write_text
    from t2t_vit.common.logger import above_progress_bars, progress_bar, setup_logging
    from t2t_vit.config import resolve
    from t2t_vit.deploy.predictor import predict_batch

    setup_logging(aside=True)  # stdout holds the answers
    if args.top_k < 1:
        raise UserError(f"--top-k is {args.top_k} but must be 1 or more")
    paths = find_images(args.words or [str(display_path(resolve(DEFAULT_IMAGE)))])
    check_outputs((args.json, args.json_ids), [*args.inputs, *paths])
    predictor, cfg = open_model(args, cfg)
    batches = [paths[i : i + cfg.VAL.BATCH_SIZE] for i in range(0, len(paths), cfg.VAL.BATCH_SIZE)]
    results = {}
    for batch in progress_bar(batches, desc="predict"):
        found = predict_batch(predictor, batch, cfg, args.top_k)
        with above_progress_bars():
            print_results(found, single=len(paths) == 1)
        results |= found
    if args.json:
        write_text(args.json, json.dumps(results, indent=1) + "\n")
    if args.json_ids:
        ids = {path: result["class_id"] for path, result in results.items() if "class_id" in result}
        write_text(args.json_ids, json.dumps(ids, indent=1) + "\n")
    failed = [result["error"] for result in results.values() if "error" in result]
    for error in failed:
        print(f"error: {printable(error)}", file=sys.stderr)
    if failed and len(paths) > 1:
        print(f"error: {len(failed)} of {len(paths)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def open_model(args, cfg):
    """(predictor, the config that fits it). Paddle is imported only where it computes."""
    from t2t_vit.deploy.predictor import choose_engine, open_engine

    engine = choose_engine(args)
    if engine in ("paddle", "inference"):
        import_paddle(cfg.DEVICE)
    predictor, cfg, _ = open_engine(args, cfg, engine)
    return predictor, cfg


def find_images(patterns):
    """Image files that the arguments name: files as they are, folders recursively, globs expanded; none twice.

    An argument that names nothing stays in the list, to be reported like an unreadable image.

    Raises UserError for a folder without images.
    """
    from t2t_vit.common.errors import UserError
    from t2t_vit.data.index import EXTENSIONS, image_files

    paths = []
    for pattern in patterns:
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


def print_results(results, single):
    """One line per image; for a single image the top classes and `class_id is: N`."""
    from t2t_vit.common.errors import printable

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


def parser():
    parser = common_parser("Classify pictures.", batch_size_key="VAL.BATCH_SIZE")
    parser.usage = "predict.py [options] [IMAGE|FOLDER|GLOB ...] [KEY VALUE ...]"
    words = next(action for action in parser._actions if action.dest == "opts")
    words.metavar = "IMAGE|FOLDER|GLOB or KEY VALUE"
    words.help = f"pictures, by default {DEFAULT_IMAGE}, a digit that comes with the repository; overridden config keys"
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes shown per image; default 5")
    add_engine_option(parser)
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="write {path: result} as JSON, complete or not at all"
    )
    parser.add_argument(
        "--json-ids", type=json_file, metavar="FILE", help="write {path: class id} alone, as MindSpore's T2T-ViT does"
    )
    return parser


def split_arguments(words):
    """(images, KEY VALUE words): what starts like a config key and names no file is one, and takes the next word."""
    from t2t_vit.config import starts_like_a_key

    images, pairs = [], []
    words = iter(words)
    for word in words:
        if starts_like_a_key(word) and not Path(word).exists():
            pairs += [word, *itertools.islice(words, 1)]
        else:
            images.append(word)
    return images, pairs


if __name__ == "__main__":
    run(main, parser(), split_words=split_arguments, paddle=False)
