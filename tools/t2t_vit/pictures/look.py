"""Select and compute the maps of the picture `attention`."""

from typing import NamedTuple, Optional

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.explain import attention
from t2t_vit.explain.overlay import cell
from t2t_vit.pictures.model import chosen_numbers
from t2t_vit.pictures.options import METHODS
from t2t_vit.pictures.sheet import short_name

# {method: options that it supports}
OPTIONS = {
    "attention": {"method", "block", "head", "query", "token"},
    "rollout": {"method", "block", "query", "token"},
    "gradient": {"method", "block", "class_id", "token"},
    "stage": {"stage", "query"},
}


class Map(NamedTuple):
    """A map over a picture."""

    values: np.ndarray  # (rows, columns)
    box: tuple  # (left, top, right, bottom) of the map, in pixels of the picture
    mark: Optional[tuple]  # box of the token whose attention is shown, or None
    lines: tuple  # lines of the caption


def chosen_methods(args):
    """Return the methods to draw: --method, or else all methods that support the given options."""
    given = {name for name in set().union(*OPTIONS.values()) if getattr(args, name) is not None}
    candidates = ["stage"] if args.stage else [args.method] if args.method else METHODS
    methods = [method for method in candidates if given <= OPTIONS[method]]
    if not methods:
        wrong = sorted(given - OPTIONS[candidates[0]].intersection(*(OPTIONS[method] for method in candidates)))
        wrong += ["stage"] if args.stage else [f"method {args.method}"] if args.method else []
        raise UserError(f"{' and '.join(f'--{name}' for name in wrong)} cannot be combined".replace("_", "-"))
    return methods


class BlockMaps:
    """Maps of the backbone blocks that the options select. Raises UserError for options that do not fit."""

    def __init__(self, args, model, names, methods):
        self.args, self.model, self.names, self.methods = args, model, names, methods
        self.backbone = model.backbone()
        count = len(self.backbone)
        self.blocks = chosen_numbers("--block", args.block or count, count, "the model's blocks")
        self.heads = [self._chosen_heads(block) for block in self.blocks]
        self.queries = args.query or [None]
        for block in self.blocks if args.query else ():
            check_queries(args.query, self.backbone[block].grid, f"block {block + 1}")
        if args.class_id is not None and not 0 <= args.class_id < len(names):
            raise UserError(f"--class-id is {args.class_id} but the classes are 0 to {len(names) - 1}")
        if args.token == "distillation" and model.num_class_tokens < 2:
            raise UserError("--token distillation needs a distilled model")

    def _chosen_heads(self, block):
        """Return the indices of the heads to draw one by one, or [None] to draw their mean."""
        if self.args.head is None:
            return [None]
        count = self.backbone[block].block.attn.num_heads
        return chosen_numbers("--head", self.args.head, count, f"the heads of block {block + 1}")

    def notes(self):
        """Describe what the sheet shows, one line per method."""
        token = "the marked token" if self.args.query else f"the {self.args.token or 'class'} token"
        heads = "one head" if self.args.head else "mean of the heads"
        texts = {
            "attention": f"attention: from {token} to each patch, {heads}",
            "rollout": "rollout: the same through the blocks (Abnar and Zuidema, 2020)",
            "gradient": f"gradient: for {self._class()} (Chefer et al., 2021)",
        }
        return [texts[method] for method in self.methods]

    def _class(self):
        """Name the class of the gradient."""
        number = self.args.class_id
        return "the predicted class" if number is None else short_name(self.names[number])

    def __call__(self, picture):
        """(logits (1, K), rows of `Map`s) of a `Picture`."""
        gradients, class_id = None, self.args.class_id
        if "gradient" in self.methods:
            logits, maps, gradients = attention.attention_gradients(self.model, picture.pixels, class_id)
        else:
            with paddle.no_grad():
                logits, maps, _ = attention.trace(self.model, picture.pixels)
        rows = []
        for method in self.methods:
            for query in self.queries:
                by_block = [
                    [self._map(method, maps, gradients, block, head, query) for head in heads]
                    for block, heads in zip(self.blocks, self.heads)
                ]
                rows += by_block if self.args.head == "all" else [sum(by_block, [])]
        return logits, rows if max(map(len, rows)) > 1 else [sum(rows, [])]

    def _map(self, method, maps, gradients, block, head, query):
        place, mark = self.backbone[block], None
        token = 1 if self.args.token == "distillation" else 0
        if query:
            token = self.model.num_class_tokens + query[0] * place.grid[1] + query[1]
            mark = cell(attention.token_box(self.model, block), place.grid, query)
        box, words = attention.token_box(self.model, 0), f"blocks 1 to {block + 1}"
        if method == "rollout":
            values = attention.rollout(maps[: block + 1], self.model, token)
        elif method == "gradient":
            values = attention.relevance(maps[: block + 1], gradients[: block + 1], self.model, token)
        else:
            rows = maps[block].mean(axis=1) if head is None else maps[block][:, head]  # (1, N, N)
            values = attention.on_grid(rows[:, token], self.model, block)
            box = attention.token_box(self.model, block)
            words = f"block {block + 1}" if head is None else f"block {block + 1}, head {head + 1}"
        title = f"gradient: {self._class()}" if method == "gradient" and self.args.class_id is not None else method
        return Map(values[0].numpy(), box, mark, (title, words, *([place_name(query)] if query else [])))


class StageMaps:
    """Maps of a layer before the blocks that has attention: a token layer of a T2T module."""

    def __init__(self, args, model):
        self.model, stages = model, attention.attending_stages(model)
        if not stages:
            raise UserError("--stage needs a T2T module with attention, which this model does not have")
        (self.index,) = chosen_numbers("--stage", args.stage, len(stages), "the layers of the T2T module")
        self.stage = stages[self.index]
        self.queries = args.query or [tuple(length * i // 4 for length in self.stage.grid) for i in (1, 2, 3)]
        self.title = f"layer {args.stage} of the T2T module"
        check_queries(self.queries, self.stage.grid, self.title)

    def notes(self):
        return [f"how much the marked token attends to each token in {self.title}"]

    def __call__(self, picture):
        """(logits (1, K), rows of `Map`s) of a `Picture`."""
        grid, box = self.stage.grid, attention.grid_box(self.stage.windows, self.stage.grid)
        places = [row * grid[1] + column for row, column in self.queries]
        logits, maps = attention.token_maps(self.model, picture.pixels, self.index, places)
        row = []
        for query, values in zip(self.queries, maps[0].numpy()):
            row.append(Map(values, box, cell(box, grid, query), (f"layer {self.index + 1}", place_name(query))))
        return logits, [row]


def place_name(query):
    return f"row {query[0] + 1}, column {query[1] + 1}"


def check_queries(queries, grid, where):
    """Raise UserError for a token that is not on the grid."""
    for row, column in queries:
        if row >= grid[0] or column >= grid[1]:
            raise UserError(
                f"--query is {row + 1},{column + 1} but the tokens of {where} are 1,1 to {grid[0]},{grid[1]}"
            )
