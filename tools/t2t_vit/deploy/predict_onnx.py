"""Classify images with an exported .onnx file: python predict_onnx.py MODEL.onnx IMAGE [IMAGE ...].

Needs onnxruntime, numpy and pillow. The file says how to prepare images and names the classes. The answers are those of
tools/predict.py, except for images with more than 8 bits or more than 50 times as long as wide.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(path, about):
    """Read an image file: float32 (channels, H, W), normalised."""
    with Image.open(path) as image:
        image = image if about["exif"] == "ignore" else ImageOps.exif_transpose(image)
        if "A" in image.getbands() or "transparency" in image.info:  # blend with white
            image, transparent = Image.new("RGB", image.size, "white"), image.convert("RGBA")
            image.paste(transparent, mask=transparent)
        image = image.convert("RGB" if about["channels"] == 3 else "L")
    side = about["image_size"][0]
    resampling = Image.Resampling[about["interpolation"].upper()]
    if about["crop_mode"] == "squash":
        image = image.resize((side, side), resampling)
    else:
        shorter, scale = min(image.size), int(side / about["crop_pct"])
        image = image.resize([max(scale, int(scale * length / shorter)) for length in image.size], resampling)
        left, top = (round((length - side) / 2) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image, np.float32).reshape(side, side, -1) / 255
    return ((pixels - np.float32(about["mean"])) / np.float32(about["std"])).transpose(2, 0, 1)


def main(model, *paths):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    for path in paths:
        batch = np.stack([prepare(path, about)] * max(1, about["batch_size"]))
        logits = session.run(None, {session.get_inputs()[0].name: batch})[0][0].astype(np.float64)  # (classes,)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = int(probabilities.argmax())
        print(f"{path} (class: {best}) {about['classes'][best]}, prob: {probabilities[best]:.4f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
