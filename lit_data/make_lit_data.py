"""Recreate lit_data's images and lists byte for byte: python lit_data/make_lit_data.py (needs scikit-learn)."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_VAL = 360
SEED = 0


def main(root):
    """Write train/<class>/*.png, val/<class>/*.png, train.txt, val.txt and classes.txt under `root`."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0..16 in the source
    train, val = train_test_split(np.arange(len(pixels)), test_size=NUM_VAL, random_state=SEED, stratify=digits.target)
    for split, indices in (("train", train), ("val", val)):
        lines = []
        for index in indices:
            label = int(digits.target[index])
            name = f"{label}/{index:04d}.png"
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            # Stored, not deflated, so that the bytes do not depend on the zlib version.
            Image.fromarray(pixels[index]).save(path, compress_level=0)
            lines.append(f"{name} {label}\n")
        (root / f"{split}.txt").write_text("".join(sorted(lines)))
    rows = [f"{label}\t{label}\t{name}\n" for label, name in enumerate(NAMES)]
    (root / "classes.txt").write_text("index\tfolder\tname\n" + "".join(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parent, help="folder to write to")
    main(parser.parse_args().root)
