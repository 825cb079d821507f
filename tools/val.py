"""Evaluate a model: python tools/val.py [--config configs/X.yaml] [--data-path DIR] [--pretrained FILE]."""

from cli import common_parser, run


def main(args, cfg):
    from config import with_classes
    from data.dataset import load_data
    from data.loader import EvalLoader
    from engine import parallel
    from engine.build import build_trained_model, warn_of_other_classes
    from engine.evaluator import evaluate
    from engine.lifeline import Lifeline
    from engine.logger import log, setup_logging
    from files import shown

    parallel.setup(cfg)
    setup_logging(main=parallel.is_main())
    with Lifeline():
        classes, splits = load_data(cfg, [args.split])
        cfg = with_classes(cfg, len(classes))
        model, weights = build_trained_model(cfg, args.pretrained)
        warn_of_other_classes(classes, weights)
        loader = EvalLoader(splits[args.split], cfg, parallel.rank(), parallel.world_size())
        log.info(
            "%s with %s on %d images of %s",
            cfg.MODEL.NAME,
            shown(weights),
            loader.num_images,
            shown(splits[args.split].source),
        )
        scores = evaluate(model, loader, cfg, cfg.VAL.LOG_EVERY)
        log.info(
            "images: %d, loss: %.4f, top-1: %.4f, top-5: %.4f", scores.num_images, scores.loss, scores.top1, scores.top5
        )
        log.info("%s final val acc is:%.4f", cfg.DATA.NAME, scores.top1)


def parser():
    parser = common_parser("Evaluate a model: top-1, top-5 and loss.", batch_size_key="VAL.BATCH_SIZE")
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="images to evaluate on; train: the training images under the evaluation transform",
    )
    return parser


if __name__ == "__main__":
    run(main, parser())
