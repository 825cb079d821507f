"""Export a model: python tools/export.py --format paddle|onnx|openvino [--config FILE] [--pretrained FILE]."""

from t2t_vit.cli import run
from t2t_vit.options import common_parser, not_empty


def main(args, cfg):
    from t2t_vit.deploy.export import export

    export(args, cfg)


def parser():
    parser = common_parser(
        "export.py",
        "Export a trained model for an inference engine, and compare the exported file with the model.",
        batch_size_key="VAL.BATCH_SIZE",
        examples=[
            "export.py --format onnx --pretrained output/finetune/best.pdparams",
            "export.py --format openvino --precision bf16 --pretrained output/finetune/best.pdparams",
        ],
    )
    parser.set_defaults(opens_run=True)
    parser.add_argument(
        "--format",
        required=True,
        choices=("paddle", "onnx", "openvino"),
        help="paddle: .json, .pdiparams and .yml (Paddle Inference); onnx: .onnx; openvino: .xml and .bin",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        help="fp32 (default); bf16: only openvino; int8 (calibrated on training images): only onnx and openvino",
    )
    parser.add_argument(
        "--dynamic-batch", action="store_true", help="accept any batch size; default: --batch-size, else 1"
    )
    parser.add_argument(
        "--file", type=not_empty, metavar="FILE", help="file to write; default output/NAME/export/NAME[-PRECISION].*"
    )
    parser.add_argument(
        "--calibration", type=int, default=128, metavar="N", help="training images to calibrate int8 on; default 128"
    )
    parser.add_argument(
        "--images", type=int, default=400, metavar="N", help="number of validation images to compare on; default 400"
    )
    return parser


if __name__ == "__main__":
    run(main, parser())
