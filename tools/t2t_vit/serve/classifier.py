"""Classifies the pictures of all requests with one model."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.common.runtime import cores
from t2t_vit.data.images import VISITORS_BYTES, ImageError
from t2t_vit.data.transforms import views_of
from t2t_vit.deploy.engines import to_input
from t2t_vit.deploy.open_model import OpenedModel
from t2t_vit.deploy.predict import ImageReader, likeliest
from t2t_vit.serve.batcher import Batcher


class Classifier:
    """Reads pictures on all cores and computes them in batches. A context manager, which ends its threads.

    Args:
        opened: the model.
        wait: seconds that a picture waits for others, see `Batcher`.
    """

    def __init__(self, opened: OpenedModel, wait: float) -> None:
        self.metadata = opened.predictor.metadata
        self.read = ImageReader(opened.cfg, VISITORS_BYTES, all_views=True)
        self.readers = ThreadPoolExecutor(cores())
        self.batches = Batcher(opened.predictor, self.metadata.batch_size or opened.cfg.VAL.BATCH_SIZE, wait)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: Any) -> None:
        self.readers.shutdown()
        self.batches.close()

    async def __call__(self, name: str, data: bytes, top_k: int) -> dict[str, Any]:
        """Classify the contents of an image file.

        Returns {"file": name, "class_id", "name", "probability", "top": [...]} like predict.py, or {"file": name,
        "error": reason}. Raises what the engine raises, and UserError if its output is not finite.
        """
        try:
            submitted = await asyncio.get_running_loop().run_in_executor(self.readers, self._submit, name, data)
        except ImageError as error:
            return {"file": name, "error": str(error)}
        logits = sum([await asyncio.wrap_future(view) for view in submitted]) / len(submitted)  # (K,)
        if not np.isfinite(logits).all():  # JSON has no NaN
            raise UserError("the model's output contains NaN or infinity")
        (top,) = likeliest(logits[None], self.metadata.classes, top_k)
        return {"file": name, **top[0], "top": top}

    def _submit(self, name, data):
        views = views_of(self.read(name, data)[None])  # one without VAL.TTA
        return [self.batches.submit(image) for view in views for image in to_input(view, self.metadata)]
