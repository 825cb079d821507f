"""Open the model that a command line names: weights, or an exported file in its inference engine.

Paddle is imported only if it runs the model. Prediction with onnxruntime or OpenVINO works without it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import display_path, is_url, sha256
from t2t_vit.common.logger import log
from t2t_vit.common.runtime import asked_threads, cores, import_paddle
from t2t_vit.config import resolve, with_classes
from t2t_vit.data.classes import ClassList
from t2t_vit.deploy.engines import SUFFIXES, Predictor, eager_predictor, engine_of, open_predictor
from t2t_vit.deploy.metadata import Metadata

if TYPE_CHECKING:
    from t2t_vit.models.family import VisionTransformer  # imports Paddle

_FORMATS = {"inference": "paddle", "onnxruntime": "onnx", "openvino": "openvino"}


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to predict. `str()` gives its name and file, for a log line."""

    predictor: Predictor  # float32 (B, C, H, W), normalised -> logits (B, K)
    cfg: CfgNode  # the config that fits the model
    classes: ClassList
    path: Path  # file of the weights, or the exported file
    model: VisionTransformer | None = None  # in eval mode; None if exported

    def __str__(self) -> str:
        return f"{self.cfg.MODEL.NAME} with {display_path(self.path)}"


def open_model(
    args: argparse.Namespace,
    cfg: CfgNode,
    weights_only: bool = False,
    with_head: bool = True,
    parallel: bool = False,
) -> OpenedModel:
    """Open the model of a command line: --pretrained, or else the best weights or the export of the config's run.

    Without its head (weights only), the model returns pooled features (B, C). With `parallel`, a file that computes one
    image at a time runs an inference on each core, see `open_predictor`.

    Returns an `OpenedModel`. Raises UserError if the file is missing, is damaged, does not fit the options, or is
    exported although `weights_only` is set.
    """
    engine = choose_engine(args)
    if weights_only and engine != "paddle":
        exported = f"{args.pretrained} is" if engine_of(args.pretrained) == engine else f"--engine {engine} runs"
        raise UserError(f"{exported} an exported model: give the weights that it was exported from with --pretrained")
    if engine in ("paddle", "inference") and not sys.modules.get("paddle"):
        import_paddle(cfg.DEVICE)
    if engine == "paddle":
        from t2t_vit.parallel import processes  # here because it imports Paddle

        processes.setup(cfg)
        return open_weights(cfg, args.pretrained, with_head)
    return _open_exported(args, cfg, engine, parallel)


def choose_engine(args):
    """Return the engine: --engine, or else the one that reads the --pretrained file."""
    fitting = engine_of(args.pretrained)
    engine = args.engine or fitting
    if engine != "paddle" and args.weights_named and fitting == "paddle":
        raise UserError(
            f"--engine {engine} reads a {' or '.join(SUFFIXES[engine])} file, not {args.pretrained}: export that "
            f"first, python tools/export.py --pretrained {args.pretrained} --format {_FORMATS[engine]}"
        )
    if engine == "paddle" and fitting != "paddle":
        raise UserError(f"--engine paddle reads weights, not {args.pretrained}: leave --engine out")
    return engine


def open_weights(cfg: CfgNode, chosen: str | Path | None = None, with_head: bool = True) -> OpenedModel:
    """Open weights as an `OpenedModel`: `chosen` (file, URL or name), or else the best weights of the config's run.

    Without its head, the model has no classes and returns pooled features.
    """
    # Here because they import Paddle.
    from t2t_vit.parallel.microbatch import inference
    from t2t_vit.weights.build import build_trained_model, classes_of, trained_weights
    from t2t_vit.weights.model_config import with_model_of

    path = trained_weights(cfg, chosen)
    cfg = with_model_of(cfg, path)
    model, _ = build_trained_model(cfg, path, with_head)
    cfg = with_classes(cfg, model.num_classes) if with_head else cfg
    classes = classes_of(cfg, path) if with_head else ClassList((), (), "no head")
    metadata = Metadata.of(cfg, classes, "fp32", batch_size=0)
    return OpenedModel(eager_predictor(inference(model, cfg), metadata), cfg, classes, path, model)


def _open_exported(args, cfg, engine, parallel):
    if args.weights_named and is_url(args.pretrained):
        raise UserError(f"an exported model must be a local file, not {args.pretrained}: download it first")
    path = Path(args.pretrained).absolute() if args.weights_named else _export_of_run(args, cfg, engine)
    device = cfg.DEVICE or "cpu"
    count = (asked_threads() or cores()) if parallel else 1
    predictor = open_predictor(engine, path, device=device, parallel=count)
    if predictor.parallel > 1 and predictor.metadata.batch_size != 1:  # batches use all cores by themselves
        predictor = open_predictor(engine, path, device=device)
    metadata = predictor.metadata
    if not args.weights_named:
        _warn_if_stale(args, cfg, metadata, path)
    cfg = metadata.settle(cfg, args.opts[::2], display_path(path))
    classes = ClassList(tuple(metadata.folders), tuple(metadata.classes), str(path))
    return OpenedModel(predictor, cfg, classes, path)


def export_folder(cfg):
    """Return the folder with the exported files of a run."""
    return resolve(cfg.OUTPUT) / cfg.NAME / "export"


def _export_of_run(args, cfg, engine):
    paths = [export_folder(cfg) / f"{cfg.NAME}{suffix}" for suffix in SUFFIXES[engine]]
    if found := [path for path in paths if path.is_file()]:
        return found[0]
    options = {"--config": args.config, "--output": args.output}
    given = "".join(f" {name} {value}" for name, value in options.items() if value)
    raise UserError(
        f"{display_path(paths[0])} not found for --engine {engine}: make it with `python tools/export.py{given} "
        f"--format {_FORMATS[engine]}`, or name a file with --pretrained"
    )


def _warn_if_stale(args, cfg, metadata, path):
    """Warn if the weights of the run have changed since the export."""
    best = Path(args.pretrained) if args.pretrained else export_folder(cfg).parent / "best.pdparams"
    if metadata.weights and best.is_file() and sha256(best) != metadata.weights:
        places = display_path(path), display_path(best)
        log.warning("warning: %s was exported from other weights than %s: export it again", *places)
