"""Calls with a wrong type, one on each marked line. Not run: mypy must report these lines and no others."""

import argparse
from pathlib import Path

import t2t_vit
from t2t_vit import cli
from t2t_vit.common.files import write_text
from t2t_vit.config import class_list, load_config
from t2t_vit.data.classes import ClassList, read_classes
from t2t_vit.data.dataset import load_data
from t2t_vit.deploy.open_model import open_model
from t2t_vit.training.evaluator import Scores
from t2t_vit.weights.build import classes_of


def call(args: argparse.Namespace, scores: Scores):
    cfg = load_config(Path("configs/lit_data.yaml"), [("SEED", 1)])
    write_text(class_list(cfg), "")  # wrong: may be None
    classes, splits = load_data(cfg, ["train"])
    classes_of(cfg, "best.pdparams")  # wrong: str for Path
    read_classes(classes)  # wrong: a ClassList for its file
    open_model(cfg, args).predictor.metadata.settle(cfg, 3, "x.onnx")  # wrong: int for a list
    open_model(args, cfg).predictor.labels  # wrong: no such attribute  # noqa: B018
    ClassList(splits, (), "")  # wrong: a dict for a tuple
    scores.line(top1=1.0)  # wrong: no such argument


def call_from_a_function_without_types():
    t2t_vit.create_model(14)  # wrong: int for a name
    t2t_vit.list_models("t2t")  # wrong: takes nothing
    cli.run(call, "parser")  # wrong: str for a parser, and a function of other arguments
