"""ReaL accuracy: the labels of Beyer et al. (2020), "Are we done with ImageNet?", several or none for an image."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import read_text
from t2t_vit.data.dataset import Split
from t2t_vit.parallel.processes import sum_over_processes
from t2t_vit.training.evaluator import top_classes

_LARGEST = 2**26  # limit of the file in bytes; real.json has less than 1 MB
_OFFICIAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real_labels(path: str | Path, split: Split, num_classes: int) -> list[list[int]]:
    """Read real.json of github.com/google-research/reassessed-imagenet: the labels of each image of a split.

    The file lists the labels of ImageNet's validation images in the order of their names. An image is found by the
    number in its official name; if a name has none, by the order of the names, and the numbers of images must agree.

    Raises:
        UserError: the file is missing, is not such a list, or does not fit the images.
    """
    labels = _read(path, num_classes)
    names = [os.path.basename(os.fsdecode(name)) for name in split.paths.names]
    matches = [_OFFICIAL_NAME.search(name) for name in names]
    if all(matches):
        places = [int(match[1]) - 1 for match in matches if match]
        if not all(0 <= place < len(labels) for place in places):
            raise UserError(f"{path} has the labels of {len(labels)} images, but {split.source} has {max(names)}")
        return [labels[place] for place in places]
    if len(names) != len(labels) or len(set(names)) != len(names):
        name = names[matches.index(None)]
        raise UserError(
            f"{path} has the labels of {len(labels)} images, but {split.source} has {len(names)} with other names, "
            f"such as {name}; use the images of ImageNet's validation, with their names (ILSVRC2012_val_00000001.JPEG)"
        )
    by_name = dict(zip(sorted(names), labels))
    return [by_name[name] for name in names]


def _read(path, num_classes):
    """Read the list of lists of class ids."""
    try:
        labels = json.loads(read_text(path, _LARGEST))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    expected = f"a list of labels from 0 to {num_classes - 1} for each image, such as [[65], [795, 970], []]"
    if not isinstance(labels, list) or not labels:
        raise UserError(f"{path} is not {expected}")
    for number, given in enumerate(labels):
        if not isinstance(given, list) or not all(type(label) is int and 0 <= label < num_classes for label in given):
            raise UserError(f"{path}, entry {number}: {str(given)[:100]} where {expected} is expected")
    return labels


class RealAccuracy:
    """Counts the images whose predicted class is among their labels. `add` is the `each_batch` of `evaluate`.

    Args:
        labels: labels of each image of the split, from `read_real_labels`. An image without any is left out.
        order: indices of the images of this process, in the order of its batches, as in `EvalOrder.mine`.
    """

    def __init__(self, labels: list[list[int]], order: Iterable[int]) -> None:
        self.labels, self.order = labels, iter(order)
        self.images = self.hits = 0

    def add(self, logits: paddle.Tensor, _labels: paddle.Tensor) -> None:
        """Count a batch: logits (B, K)."""
        for predicted in top_classes(logits)[:, 0].tolist():
            if right := self.labels[next(self.order)]:
                self.images += 1
                self.hits += predicted in right

    def collect(self) -> None:
        """Add the counts of all processes. Each process must call it once, after its last batch."""
        self.images, self.hits = sum_over_processes(paddle.to_tensor([self.images, self.hits])).tolist()

    def top1(self) -> float:
        """The accuracy over the images with labels; NaN if there is none."""
        return self.hits / self.images if self.images else math.nan
