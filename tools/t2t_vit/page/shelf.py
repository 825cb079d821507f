"""The models of the page, and what they say about pictures."""

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from t2t_vit.common.errors import UserError
from t2t_vit.common.logger import log
from t2t_vit.config import best_weights, load_config, resolve
from t2t_vit.data.images import ImageError, load_image, to_image
from t2t_vit.data.index import class_folders, image_files
from t2t_vit.data.layout import split_folder
from t2t_vit.deploy.engines import to_input
from t2t_vit.deploy.open_model import open_model, open_weights
from t2t_vit.deploy.predict import classify, read_images
from t2t_vit.explain.overlay import overlay

TOP = 5
EXAMPLES = 10
MOST_BYTES = 192 << 20  # of a decoded picture, 50 megapixels of RGB; less than predict.py allows
LONGEST_NAME = 80  # letters of a class
METHODS = ("gradient", "rollout", "last block")


@dataclass(frozen=True)
class Opened:
    """A model that is ready."""

    name: str
    predictor: object
    cfg: object
    model: object  # None of an exported one

    def classes(self):
        """The names of the classes, each but once."""
        names = [
            name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
            for name in self.predictor.metadata.classes
        ]
        count = Counter(names)
        return [name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]


@dataclass(frozen=True)
class Answer:
    """What a model says about a picture."""

    model: str  # its name
    pixels: object  # uint8 (S, S, channels), as the model sees it
    top: dict  # {class: probability} of the TOP likeliest


class Shelf:
    """Models by name, opened when first asked and kept. One thread asks them, however many look at the page."""

    def __init__(self, args, cfg):
        self.sources = _sources(args, cfg)
        self.opened = {}
        self.thread = ThreadPoolExecutor(1)

    @property
    def names(self):
        return list(self.sources)

    def ask(self, name, question, *words):
        """What `question(opened, *words)` returns for the model. Raises UserError where it cannot be opened."""

        def answer():
            if name not in self.opened:
                found = self.sources[name]()
                self.opened[name] = Opened(name, found.predictor, found.cfg, found.model)
            return question(self.opened[name], *words)

        return self.thread.submit(answer).result()


def _sources(args, cfg):
    """{name: function that opens it}: the model of the command line, the other runs in OUTPUT, the shipped ones."""
    own = Path(args.pretrained or best_weights(cfg)).resolve()
    name = f"{cfg.NAME}: {own.name}" if args.weights_named and own.parent.name != cfg.NAME else cfg.NAME
    sources = {name: lambda: _open_own(args, cfg)}
    device = [("DEVICE", cfg.DEVICE)] if cfg.DEVICE else []
    output = resolve(cfg.OUTPUT)
    for path in [*sorted(output.glob("*/config.yaml")), *sorted(output.glob("pretrained/*/config.yaml"))]:
        best = path.with_name("best.pdparams")
        if best.is_file() and best.resolve() != own:
            sources.setdefault(path.parent.name, _opener(path, device, best))
    return sources


def _open_own(args, cfg):
    opened = open_model(args, cfg)
    if not args.weights_named:
        log.info("note: %s", opened)
    return opened


def _opener(config, device, weights):
    return lambda: open_weights(load_config(config, device), str(weights))


# --- Questions ---


def look(opened, paths):
    """(`Answer`s about the files that are pictures, a line about each of the others)."""
    pixels, errors = read_images(dict.fromkeys(paths), opened.cfg, MOST_BYTES)  # each but once
    classes, size = opened.classes(), opened.cfg.VAL.BATCH_SIZE
    images, answers = list(pixels.values()), []
    for start in range(0, len(images), size):
        answers += classify(opened.predictor, images[start : start + size], TOP)
    tops = [{classes[entry["class_id"]]: entry["probability"] for entry in answer} for answer in answers]
    found = [Answer(opened.name, image, top) for image, top in zip(images, tops)]
    return found, list(errors.values())


def attention(opened, pixels, method, name):
    """The image with its attention over it, an RGB PIL image.

    Args:
        method: one of METHODS.
        name: class that "gradient" asks about, one of `Opened.classes()`.

    Raises UserError: the model is an exported one, which does not show its attention.
    """
    import paddle

    from t2t_vit.explain.attention import attention_maps, gradient_maps, on_grid, rollout, token_box

    if opened.model is None:
        raise UserError("an exported model does not show its attention")
    model, images = opened.model, paddle.to_tensor(to_input(pixels[None], opened.predictor.metadata))
    if method == "gradient":
        values = gradient_maps(model, images, opened.classes().index(name))
    elif method == "rollout":
        values = rollout(attention_maps(model, images), model)
    else:
        values = on_grid(attention_maps(model, images)[-1].mean(axis=1)[:, 0], model)
    box = token_box(model, -1 if method == "last block" else 0)
    return overlay(to_image(pixels), values[0].numpy(), box=box)


def examples(opened):
    """Pictures of the model's own data, one of a class, as far as the data set is here."""
    folder = split_folder(resolve(opened.cfg.DATA.PATH), "val")
    if folder is None:
        return []
    names = class_folders(folder)
    step = max(1, len(names) // EXAMPLES)
    first = (_first_picture(folder / name) for name in names[::step][:EXAMPLES])
    return [path for path in first if path]


def _first_picture(folder):
    """Path of the first file that can be read as a picture; None if there is none."""
    for path in image_files(folder):
        with contextlib.suppress(ImageError):
            load_image(path)
            return path
    return None
