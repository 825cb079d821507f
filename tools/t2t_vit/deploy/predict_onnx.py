"""Classify images with an exported .onnx file: python predict_onnx.py MODEL.onnx IMAGE [IMAGE ...].

Needs onnxruntime, numpy and pillow. The file says how to prepare images and names the classes. The answers are those of
tools/predict.py, except for images with more than 8 bits or more than 50 times as long as wide.
"""

import json
import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(path, about):
    """Read an image file: float32 (channels, H, W), normalised."""
    with Image.open(path, formats=("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")) as image:
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
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        sys.exit(f"error: {model} cannot be read: {error}")
    about = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    broken = 0
    for path in paths:
        try:
            image = prepare(path, about)
        except Exception as error:  # Pillow raises many kinds
            print(f"error: {path} cannot be read: {error}", file=sys.stderr)
            broken += 1
            continue
        batch = np.stack([image] * max(1, about["batch_size"]))
        logits = session.run(None, {session.get_inputs()[0].name: batch})[0][0].astype(np.float64)  # (classes,)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = int(probabilities.argmax())
        print(f"{path} (class: {best}) {about['classes'][best]}, prob: {probabilities[best]:.4f}")
    return 1 if broken else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
