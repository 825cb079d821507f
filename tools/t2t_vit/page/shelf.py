"""The models of the page, and their predictions for pictures."""

import contextlib
import functools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.config import best_weights, load_config, resolve
from t2t_vit.data.images import VISITORS_BYTES, to_image
from t2t_vit.data.index import class_folders, image_files
from t2t_vit.data.layout import split_folder
from t2t_vit.deploy.engines import to_input
from t2t_vit.deploy.open_model import open_model, open_weights
from t2t_vit.deploy.predict import classify, read_images
from t2t_vit.explain.attention import attention_maps, gradient_maps, on_grid, rollout, token_box
from t2t_vit.explain.overlay import overlay
from t2t_vit.runs.run_logs import read_run

TOP = 5
EXAMPLES = 10
_MOST_METRICS = 4 << 20  # bytes, of thousands of epochs
EXAMPLES_FOLDER = "docs/figures/examples"  # with a folder of class folders for a DATA.NAME, if its data is not at hand
METHODS = ("gradient", "rollout", "last block")


@dataclass(frozen=True)
class Answer:
    """The prediction of a model for a picture."""

    model: str  # name of the model
    pixels: object  # uint8 (S, S, channels), as the model sees it
    top: dict  # {class: probability} of the top 5


class Shelf:
    """Models by name. Each is opened when first used, then kept. One thread computes for all visitors."""

    def __init__(self, args, cfg):
        self.sources, self.labels = _sources(args, cfg)
        self.names = list(self.sources)
        self.thread = ThreadPoolExecutor(1)
        self._open = functools.cache(lambda name: self.sources[name]())

    def ask(self, name, question, *words):
        """Return `question(OpenedModel, *words)` for a model. Raises UserError if the model cannot be opened."""
        return self.thread.submit(lambda: question(self._open(name), *words)).result()

    def look(self, name, paths):
        """Classify files. Returns (an `Answer` for each picture, an error line for each other file)."""
        found, errors = self.ask(name, look, paths)
        return [Answer(name, pixels, top) for pixels, top in found], errors


def _sources(args, cfg):
    """Return {name: function that opens the model} and {name: label}.

    First comes the given model, then other runs in OUTPUT, then those in its pretrained/.
    """
    own = Path(args.pretrained or best_weights(cfg)).resolve()
    name = f"{cfg.NAME}: {own.name}" if args.weights_named and own.parent.name != cfg.NAME else cfg.NAME
    sources, labels = {name: functools.partial(open_model, args, cfg)}, {name: _label(name, cfg, own)}
    device = [("DEVICE", cfg.DEVICE)] if cfg.DEVICE else []
    output = resolve(cfg.OUTPUT)
    for path in [*sorted(output.glob("*/best.pdparams")), *sorted(output.glob("pretrained/*/best.pdparams"))]:
        if path.with_name("config.yaml").is_file() and path.resolve() != own:
            sources.setdefault(path.parent.name, functools.partial(_open_run, path, device))
            labels.setdefault(path.parent.name, _label(path.parent.name, None, path))
    return sources, labels


def _open_run(weights, device):
    return open_weights(load_config(weights.with_name("config.yaml"), device), str(weights))


def _label(name, cfg, weights):
    """Return the name with the data and the best validation accuracy of the run, where they are known."""
    words = [name]
    with contextlib.suppress(UserError, OSError):  # the model may be usable all the same
        cfg = cfg or load_config(weights.with_name("config.yaml"), [])
        words.append(cfg.DATA.NAME)
        metrics = weights.with_name("metrics.jsonl")
        if weights.name == "best.pdparams" and metrics.stat().st_size < _MOST_METRICS:
            best = read_run(metrics).best_validation(cfg.VAL.BEST)
            words += [f"{100 * best[0]:.2f}%"] if best and 0 <= best[0] <= 1 else []
    return " · ".join(dict.fromkeys(words))


# --- Questions to an `OpenedModel` ---


def class_names(opened):
    """Return the names of the classes. Names that are not unique get their number."""
    names = opened.predictor.metadata.classes
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def look(opened, paths):
    """Return ([(pixels as the model sees them, {class: probability} of the top 5)], errors of unreadable files)."""
    pixels, errors = read_images(dict.fromkeys(paths), opened.cfg, VISITORS_BYTES)
    names, size = class_names(opened), opened.cfg.VAL.BATCH_SIZE
    images, answers = list(pixels.values()), []
    for start in range(0, len(images), size):
        answers += classify(opened.predictor, images[start : start + size], TOP)
    tops = [{names[entry["class_id"]]: entry["probability"] for entry in answer} for answer in answers]
    return list(zip(images, tops)), list(errors.values())


def attention(opened, pixels, method, name):
    """Draw the attention over an image. Returns an RGB PIL image.

    Args:
        opened: `OpenedModel`.
        pixels: uint8 (S, S, channels), as the model sees it.
        method: one of METHODS.
        name: class of "gradient", one of `class_names`.

    Raises UserError for an exported model, which does not show its attention.
    """
    model = opened.model
    if model is None:
        raise UserError("an exported model does not show its attention")
    images = paddle.to_tensor(to_input(pixels[None], opened.predictor.metadata))
    if method == "gradient":
        values = gradient_maps(model, images, class_names(opened).index(name))
    elif method == "rollout":
        values = rollout(attention_maps(model, images), model)
    else:
        values = on_grid(attention_maps(model, images)[-1].mean(axis=1)[:, 0], model)
    box = token_box(model, -1 if method == "last block" else 0)
    return overlay(to_image(pixels), values[0].numpy(), box=box)


def examples(opened):
    """Return {path: pixels as the model sees them}, one image per class of its validation data or EXAMPLES_FOLDER."""
    folder = split_folder(resolve(opened.cfg.DATA.PATH), "val")
    names = class_folders(folder) if folder else []
    if not folder:
        folder = resolve(EXAMPLES_FOLDER) / Path(opened.cfg.DATA.NAME).name
        names = [name for name in opened.classes.folders if (folder / name).is_dir()]
    names = names[:: max(1, len(names) // EXAMPLES)][:EXAMPLES]
    paths = [path for name in names for path in image_files(folder / name)[:1]]
    return read_images(paths, opened.cfg, VISITORS_BYTES)[0]
