"""Random erasing (Zhong et al. 2020), as in timm/data/random_erasing.py: after normalisation, on the device."""

import math

import numpy as np
import paddle

_TRIES = 10
_AREA = (0.02, 1 / 3)  # area of a box / area of the image
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))  # log(height / width)


class RandomErasing:
    """Draws boxes for each image in the loader, and erases them in the normalised batch on the device."""

    def __init__(self, cfg):
        self.probability, self.mode, self.count = cfg.AUG.ERASE_PROB, cfg.AUG.ERASE_MODE, cfg.AUG.ERASE_COUNT
        self.size = cfg.DATA.IMAGE_SIZE

    def draw_boxes(self, rng):
        """Draw the boxes of an image: int16 (ERASE_COUNT, 4), top, left, bottom, right. Zeros erase nothing."""
        boxes = np.zeros((self.count, 4), np.int16)
        if rng.random() >= self.probability:
            return boxes
        count = int(rng.integers(1, self.count + 1))
        for i in range(count):
            boxes[i] = self._draw_box(count, rng)
        return boxes

    def _draw_box(self, count, rng):
        for _ in range(_TRIES):
            area = rng.uniform(*_AREA) * self.size**2 / count
            aspect = math.exp(rng.uniform(*_LOG_ASPECT))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < self.size and width < self.size:
                top, left = rng.integers(self.size - height + 1), rng.integers(self.size - width + 1)
                return top, left, top + height, left + width
        return 0, 0, 0, 0

    def plan(self, boxes, shape, rng):
        """Plan what to erase in a batch.

        Args:
            boxes: int (B, ERASE_COUNT, 4), results of `draw_boxes`.
            shape: (H, W, C) of an image.
            rng: random generator for the noise.

        Returns:
            List of [rows, pixels, fill], at most one for each of the ERASE_COUNT boxes of an image. NumPy arrays:
            rows int64 (n,) are the images that have this box, pixels bool (n, H, W, 1) is True inside it. The fill is a
            seed in mode pixel, float32 (n, 1, 1, C) in mode rand, else None.
        """
        fills = []
        for number in range(boxes.shape[1]):
            rows = np.flatnonzero(boxes[:, number, 2] > boxes[:, number, 0])
            if len(rows):
                pixels = inside(boxes[rows, number], *shape[:2])
                fills.append([rows, pixels, self._draw_fill(len(rows), shape[2], rng)])
        return fills

    def _draw_fill(self, images, channels, rng):
        if self.mode == "pixel":
            return int(rng.integers(2**31))
        if self.mode == "rand":
            return rng.standard_normal((images, 1, 1, channels)).astype(np.float32)
        return None

    @paddle.no_grad()
    def __call__(self, images, plan):
        """Fill the boxes of a `plan`, given as tensors, in normalised images (B, H, W, C)."""
        for rows, pixels, fill in plan:
            if self.mode == "pixel":  # noise for each pixel
                paddle.seed(fill)
                fill = paddle.randn([rows.shape[0], *images.shape[1:]])
            elif self.mode == "const":
                fill = paddle.zeros([1])
            images = paddle.scatter(images, rows, paddle.where(pixels, fill, paddle.gather(images, rows)))
        return images


def inside(boxes, height, width):
    """bool (n, H, W, 1): True inside the boxes (n, 4), each top, left, bottom, right."""
    pixels = np.zeros((len(boxes), height, width, 1), bool)
    for mask, (top, left, bottom, right) in zip(pixels, boxes):
        mask[top:bottom, left:right] = True
    return pixels
