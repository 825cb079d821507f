"""The model card (README.md) of a run's weights, for a model hub: only what config.yaml and metrics.jsonl say."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from t2t_vit.common.errors import UserError, counted, printable
from t2t_vit.common.files import check_outputs, is_url, sha256, write_text
from t2t_vit.config import load_config
from t2t_vit.models.zoo import family_of
from t2t_vit.runs.run_logs import read_run
from t2t_vit.weights import published
from t2t_vit.weights.build import build_model, model_overrides
from t2t_vit.weights.convert import convert, format_of
from t2t_vit.weights.download import local_file
from t2t_vit.weights.formats import read_weights

_CARD = """---
pipeline_tag: image-classification
tags:
- image-classification
- {tag}
---

# {name}

`{file}` contains weights of {model}, trained on {data}.

{table}

The code that trained and converted them is under Apache-2.0. The licence of these weights is for their author to state:
add `license:` to the first lines of this file.

## Load

```python
import t2t_vit

model = t2t_vit.create_model({arguments})
model.eval()
```

The input is float32, (N, {channels}, {size}, {size}). {pixels} {layout}
"""
_LAYOUTS = {
    "safetensors": "The names and shapes of the tensors are those of the official PyTorch code.",
    "torch": "The file is for the official PyTorch code.",
    "paddle": "The file is for PaddlePaddle; `paddle.load` reads it too.",
}


def convert_and_describe(args: argparse.Namespace) -> None:
    """Convert the file of a command line of convert.py, and write the model card that --card asks for."""
    card = ModelCard(args) if args.card else None
    convert(args)
    if card:
        card.write()


class ModelCard:
    """The card of the weights that a command line of convert.py converts.

    Raises UserError if they are not those of a run, or if the file exists. Nothing is written before `write`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.path, self.output, self.format = Path(args.card), Path(args.output), format_of(args)
        self.source = local_file(args.source, "give a weights file or a URL")
        config, self.metrics = (self.source.with_name(name) for name in ("config.yaml", "metrics.jsonl"))
        if not config.is_file():
            raise UserError(f"--card describes a run, but there is no {config}: give the weights in a run's folder")
        if self.path.exists():
            raise UserError(f"--card {self.path} exists already; remove it or choose another name")
        check_outputs([self.path, self.output], [self.source, config, self.metrics])
        self.cfg = load_config(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in build_model(self.cfg).state_dict().items()}
        if read_weights(self.source).shapes != shapes:
            raise UserError(f"--card describes the model of {config}, which is not that of {self.source}")
        self.best = None
        if self.source.name == "best.pdparams" and self.metrics.is_file():
            self.run = read_run(self.metrics)
            self.best = self.run.best_validation(self.cfg.VAL.BEST)

    def write(self) -> None:
        """Write the card, when the weights are there."""
        data = self.cfg.DATA
        text = _CARD.format(
            tag="pit" if family_of(self.cfg.MODEL.NAME).name == "PIT" else "t2t-vit",
            name=printable(self.cfg.NAME), file=printable(self.output.name), model=self.cfg.MODEL.NAME,
            data=printable(data.NAME), table=self._table(), arguments=self._arguments(), channels=data.CHANNELS,
            size=data.IMAGE_SIZE, pixels=self._pixels(), layout=_LAYOUTS[self.format],
        )  # fmt: skip
        write_text(self.path, text)
        print(printable(f"{self.path}: model card"))

    def _table(self):
        train, rows = self.cfg.TRAIN, {}
        differs = model_overrides(self.cfg.MODEL)
        rows["model"] = self.cfg.MODEL.NAME + "".join(f", {key} {value}" for key, value in differs.items())
        rows["classes"] = self.cfg.MODEL.NUM_CLASSES
        rows["epochs"] = train.EPOCHS + train.COOLDOWN_EPOCHS
        rows["optimizer"] = f"{train.OPTIMIZER}, learning rate {train.BASE_LR:g}, weight decay {train.WEIGHT_DECAY:g}"
        if self.cfg.MODEL.PRETRAINED:
            rows["start"] = f"weights {_public_name(self.cfg.MODEL.PRETRAINED)}"
        if self.cfg.DISTILL.TYPE:
            rows["teacher"] = f"{_public_name(self.cfg.DISTILL.TEACHER)}, {self.cfg.DISTILL.TYPE} distillation"
        if self.best:
            top1, epoch, key = self.best
            top5 = self.run.rows[epoch].get(key.replace("top1", "top5"))
            average = " of the averaged weights (EMA)" if "ema" in key else ""
            val = {key: self.cfg.VAL[key] for key in ("TTA", "CLASSES_ONLY") if self.cfg.VAL[key]}
            how = "".join(f", VAL.{key} {value}" for key, value in val.items())
            rows["validation top-1"] = f"{100 * top1:.2f} %{average}, epoch {epoch} of {max(self.run.rows)}{how}"
            if top5 is not None:
                rows["validation top-5"] = f"{100 * top5:.2f} %"
        rows["file"] = f"{self.output.stat().st_size:,} bytes, SHA-256 {sha256(self.output)}"
        lines = [f"| {name} | {printable(value)} |" for name, value in rows.items()]
        return "\n".join(["| | |", "|---|---|", *lines])

    def _arguments(self):
        """The arguments of `create_model` that make this model."""
        model, data = self.cfg.MODEL, self.cfg.DATA
        options = {"pretrained": self.output.name, "image_size": data.IMAGE_SIZE, "in_chans": data.CHANNELS}
        options |= {**model_overrides(model), **({"qk_scale": model.QK_SCALE} if model.QK_SCALE else {})}
        return ", ".join([repr(model.NAME), *(f"{key}={value!r}" for key, value in options.items())])

    def _pixels(self):
        data, val = self.cfg.DATA, self.cfg.VAL
        side = math.floor(data.IMAGE_SIZE / val.CROP_PCT)
        resized = f"The shorter side is resized to {counted(side, 'pixel')} and the centre is cropped"
        if val.CROP_MODE == "squash":
            resized = "The picture is resized without keeping its proportions"
        values = f"{'RGB' if data.CHANNELS == 3 else 'grey'} values from 0 to 1"
        return f"{resized} ({val.INTERPOLATION}). From {values}, {data.MEAN} is subtracted; divide by {data.STD}."


def _public_name(word):
    """A URL or a published name as it is; of a path, the last part, because a card is for others."""
    return word if is_url(word) or word in published.table() else Path(word).name
