"""Random erasing (Zhong et al. 2020), as timm/data/random_erasing.py does it: after normalisation, on the device."""

import math

import numpy as np
import paddle

_TRIES = 10
_AREA = (0.02, 1 / 3)  # of the image
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))  # log(height / width)


class RandomErasing:
    """Draws boxes with each image in the loader, and fills them in the normalised batch."""

    def __init__(self, cfg):
        self.probability, self.mode, self.count = cfg.AUG.ERASE_PROB, cfg.AUG.ERASE_MODE, cfg.AUG.ERASE_COUNT
        self.size = cfg.DATA.IMAGE_SIZE

    def draw_boxes(self, rng):
        """int16 (ERASE_COUNT, 4): top, left, bottom, right in pixels; all 0 where nothing is erased."""
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

    @paddle.no_grad()
    def __call__(self, images, boxes, rng):
        """Fill the boxes of a batch.

        Args:
            images: (B, H, W, C), normalised.
            boxes: int (B, ERASE_COUNT, 4) array of `draw_boxes`.
            rng: generator of the noise.
        """
        for number in range(boxes.shape[1]):
            rows = np.flatnonzero(boxes[:, number, 2] > boxes[:, number, 0])
            if len(rows):
                images = self._fill(images, rows, boxes[rows, number], rng)
        return images

    def _fill(self, images, rows, boxes, rng):
        _, height, width, channels = images.shape
        inside = np.zeros((len(rows), height, width, 1), bool)
        for mask, (top, left, bottom, right) in zip(inside, boxes):
            mask[top:bottom, left:right] = True
        if self.mode == "pixel":  # noise in each pixel
            paddle.seed(int(rng.integers(2**31)))
            fill = paddle.randn([len(rows), height, width, channels])
        elif self.mode == "rand":  # one colour in each box
            fill = paddle.to_tensor(rng.standard_normal((len(rows), 1, 1, channels)).astype(np.float32))
        else:
            fill = paddle.zeros([1])
        rows = paddle.to_tensor(rows)
        erased = paddle.where(paddle.to_tensor(inside), fill, paddle.gather(images, rows))
        return paddle.scatter(images, rows, erased)
