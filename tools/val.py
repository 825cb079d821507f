"""Evaluate a model: python tools/val.py [--config configs/X.yaml] [--data-path DIR] [--pretrained FILE]."""

from t2t_vit.cli import add_evaluation_options, common_parser, import_paddle, run


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
        from t2t_vit.deploy.validate import validate

        validate(args, cfg)


def parser():
    parser = common_parser("Evaluate a model: top-1, top-5 and loss.", batch_size_key="VAL.BATCH_SIZE")
    add_evaluation_options(parser)
    return parser


if __name__ == "__main__":
    run(main, parser(), imports_paddle=False)
