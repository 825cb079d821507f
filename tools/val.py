"""Evaluate a model: python tools/val.py [--config configs/X.yaml] [--data-path DIR] [--pretrained FILE]."""

from t2t_vit.cli import add_engine_option, common_parser, import_paddle, run


def main(args, cfg):
    from t2t_vit.common import ranks
    from t2t_vit.common.errors import UserError
    from t2t_vit.parallel.lifeline import FailureMonitor

    try:
        ranks.check()
    except UserError:  # variables that are left from something else
        ranks.forget()
    with FailureMonitor():
        import_paddle(cfg.DEVICE, several=True)
        _validate(args, cfg)


def _validate(args, cfg):
    from t2t_vit.common.files import display_path
    from t2t_vit.common.logger import log, setup_logging
    from t2t_vit.data.loader import EvalLoader
    from t2t_vit.deploy.predictor import when_best
    from t2t_vit.parallel import processes
    from t2t_vit.training.evaluator import evaluate

    processes.setup(cfg)
    setup_logging(main=processes.is_main())
    model, weights, cfg, _, split = open_model(args, cfg)
    loader = EvalLoader(split, cfg, processes.rank(), processes.world_size())
    source = f"{len(split)} images of {display_path(split.source)}"
    log.info("%s with %s on %s%s", cfg.MODEL.NAME, display_path(weights), source, when_best(weights))
    scores = evaluate(model, loader, cfg, cfg.VAL.LOG_EVERY)
    log.info(scores.line())
    log.info("%s final val acc is:%.4f", cfg.DATA.NAME, scores.top1)


def open_model(args, cfg):
    """(model or what stands for it, its file, the config that fits it, the classes and the split to evaluate on)."""
    from t2t_vit.common.files import display_path
    from t2t_vit.common.logger import log
    from t2t_vit.config import best_weights, with_classes
    from t2t_vit.data.classes import ClassList
    from t2t_vit.data.dataset import load_data
    from t2t_vit.deploy.predictor import choose_engine, open_exported
    from t2t_vit.training.evaluator import PredictorModel
    from t2t_vit.weights.build import build_trained_model, classes_beside, first_difference, refuse_other_order

    engine = choose_engine(args)
    if engine == "paddle":
        weights = None if "MODEL.NUM_CLASSES" in args.opts[::2] else display_path(args.pretrained or best_weights(cfg))
        classes, splits = load_data(cfg, [args.split], model_file=weights)
        cfg = with_classes(cfg, len(classes))
        model, path = build_trained_model(cfg, args.pretrained)
        theirs = classes_beside(path)
    else:
        predictor, cfg, path = open_exported(args, cfg, engine)
        classes, splits = load_data(cfg, [args.split], model_file=display_path(path))
        model, metadata = PredictorModel(predictor), predictor.metadata
        theirs = ClassList(metadata.folders, metadata.classes, str(path))
    if theirs and (other := first_difference(classes, theirs)):
        refuse_other_order(classes, theirs)
        log.warning("warning: %s; DATA.CLASSES FILE gives the data the ids of a class list", other)
    return model, path, cfg, classes, splits[args.split]


def parser():
    parser = common_parser("Evaluate a model: top-1, top-5 and loss.", batch_size_key="VAL.BATCH_SIZE")
    add_evaluation_options(parser)
    return parser


def add_evaluation_options(parser):
    """The options that `open_model` reads besides the common ones."""
    add_engine_option(parser)
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="images to evaluate on; train: the training images under the evaluation transform",
    )


if __name__ == "__main__":
    run(main, parser(), imports_paddle=False)
