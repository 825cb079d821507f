"""python plain_inference.py MODEL FOLDER [default] [onednn]: print the top-1 accuracies of an exported file.

It is like a user's own program: Paddle Inference with its default Config or with oneDNN, and the .yml beside the file,
without code of this repository. FOLDER contains one folder of images per class.
"""

import sys
from pathlib import Path

import numpy as np
import yaml
from paddle import inference
from PIL import Image

model, folder = map(Path, sys.argv[1:3])
claims = yaml.safe_load(model.with_suffix(".yml").read_text(encoding="utf-8"))
height, width = claims["image_size"]
resized = round(width / claims["crop_pct"]), round(height / claims["crop_pct"])
left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
filters = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def prepared(path):
    """float32 (1, C, H, W) of a picture."""
    picture = Image.open(path).convert({1: "L", 3: "RGB"}[claims["channels"]])
    picture = picture.resize(resized, filters[claims["interpolation"]]).crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.float32).reshape(height, width, -1) / 255
    pixels = (pixels - np.float32(claims["mean"])) / np.float32(claims["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


for setting in sys.argv[3:]:
    config = inference.Config(str(model), str(model.with_suffix(".pdiparams")))
    config.disable_glog_info()
    if setting == "onednn":
        config.enable_mkldnn()
    predictor = inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    target = predictor.get_output_handle(predictor.get_output_names()[0])
    hits = []
    for path in sorted(folder.glob("*/*.png")):
        source.copy_from_cpu(prepared(path))
        predictor.run()
        hits.append(claims["folders"][target.copy_to_cpu()[0].argmax()] == path.parent.name)
    print(f"{np.mean(hits):.4f}")
