"""Classify images: python tools/predict.py [IMAGE|FOLDER|GLOB ...] [--top-k K] [--json FILE] [KEY VALUE ...]."""

from t2t_vit.cli import run, split_images
from t2t_vit.options import IMAGES, add_engine_option, common_parser, json_file, npz_file


def main(args, cfg):
    from t2t_vit.deploy.predict import predict

    return predict(args, cfg)


def parser():
    parser = common_parser(
        "predict.py",
        "Classify images.",
        batch_size_key="VAL.BATCH_SIZE",
        examples=[
            "predict.py photo.jpg --config configs/t2t_vit_7.yaml --pretrained weights.pdparams",
            "predict.py pictures/ --pretrained output/finetune/best.pdparams --json predictions.json",
            "predict.py pictures/ --pretrained output/finetune/best.pdparams --embeddings features.npz",
        ],
        words=IMAGES,
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes shown per image; default 5")
    add_engine_option(parser)
    parser.add_argument("--json", type=json_file, metavar="FILE", help="write {path: result} as JSON")
    parser.add_argument(
        "--json-ids", type=json_file, metavar="FILE", help="write only {path: class id}, like MindSpore's T2T-ViT"
    )
    parser.add_argument(
        "--embeddings",
        type=npz_file,
        metavar="FILE",
        help="write the model's features instead of classes: `embeddings` (N, C) float32 and `files` (N), for np.load",
    )
    return parser


if __name__ == "__main__":
    run(main, parser(), split_words=split_images, paddle=False)
