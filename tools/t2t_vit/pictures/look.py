"""The maps of the picture `attention`: which ones the options choose, and how they are drawn."""

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.explain import attention
from t2t_vit.explain.overlay import cell, marked, overlay, scaled
from t2t_vit.pictures.sheet import Cell, short_name

_SCALE = "each map from its smallest value (dark) to its largest (light)"


def choose_maps(args, model, names):
    """`BlockMaps`, or `StageMaps` for --stage, with `explanations()` and `draw(picture)`.

    Raises UserError for options that do not fit the model or each other.
    """
    return (BlockMaps if args.stage is None else StageMaps)(args, model, names)


class BlockMaps:
    """Maps of the blocks of the backbone."""

    def __init__(self, args, model, names):
        self.model, self.names, self.class_id = model, names, args.class_id
        self.backbone = model.backbone()
        self.blocks = self._chosen_blocks(args.block)
        self.methods = _chosen_methods(args)
        self.fusion = args.head if args.head in attention.FUSIONS else "mean"
        self.heads = [self._chosen_heads(args.head, block) for block in self.blocks]
        self.token = _chosen_token(args, model)
        for block in self.blocks if args.query else ():
            _check_queries(args.query, self.backbone[block].grid, f"block {block + 1}")
        self.queries = args.query or [None]
        if args.class_id is not None and "gradient" not in self.methods:
            raise UserError(f"--class-id is for --method gradient, but this draws only {' and '.join(self.methods)}")
        if args.class_id is not None and not 0 <= args.class_id < len(names):
            raise UserError(f"--class-id is {args.class_id} but the classes are 0 to {len(names) - 1}")

    def _chosen_blocks(self, block):
        count = len(self.backbone)
        if block == "all":
            return list(range(count))
        if block and block > count:
            raise UserError(f"--block is {block} but the model's blocks are 1 to {count}")
        return [block - 1 if block else count - 1]

    def _chosen_heads(self, head, block):
        """Indices of the heads to draw one by one; [None] to draw the fused heads."""
        if head is None or head in attention.FUSIONS:
            return [None]
        count = self.backbone[block].block.attn.num_heads
        if head == "all":
            return list(range(count))
        if head > count:
            raise UserError(f"--head is {head} but the heads of block {block + 1} are 1 to {count}")
        return [head - 1]

    def explanations(self):
        """What the sheet shows, one line per method and one for the colours."""
        token = "the marked token" if self.queries[0] else ["the class token", "the distillation token"][self.token]
        heads = f"{self.fusion} of its heads" if self.heads[0] == [None] else "one head"
        texts = {
            "attention": f"attention: what {token} takes from each patch in one block, {heads}",
            "rollout": f"rollout: what reaches {token} from each patch through the blocks (Abnar and Zuidema, 2020)",
            "gradient": "gradient: patches whose attention increases the logit of a class (Chefer et al., 2021)",
        }
        return [*(texts[method] for method in self.methods), _SCALE]

    def draw(self, picture):
        """The predicted class in words, and rows of `Cell`s with the maps over a `Picture`."""
        gradients = None
        if "gradient" in self.methods:
            logits, maps, gradients = attention.attention_gradients(self.model, picture.pixels, self.class_id)
        else:
            with paddle.no_grad():
                logits, maps, _ = attention.trace(self.model, picture.pixels)
        class_id = int(logits[0].argmax()) if self.class_id is None else self.class_id
        name, rows = short_name(self.names[class_id]), []
        for method in self.methods:
            for query in self.queries:
                about = f" of {query[0] + 1},{query[1] + 1}" if query else ""
                title = f"gradient: {name}" if method == "gradient" else f"{method}{about}"
                by_block = []
                for block, heads in zip(self.blocks, self.heads):
                    mark = self._box(block, query) if query else None
                    box = self._box(block if method == "attention" else 0)
                    found = [self._map(maps, gradients, method, block, head, query) for head in heads]
                    by_block.append([_cell(picture.image, map_, (title, words), box, mark) for map_, words in found])
                rows += _joined(by_block)
        return _answer(logits, self.names), _joined(rows)

    def _box(self, block, query=None):
        """Box of the patches of a block, or of one of them, in pixels."""
        box = attention.token_box(self.model, block)
        return cell(box, self.backbone[block].grid, query) if query else box

    def _map(self, maps, gradients, method, block, head, query):
        """One map (rows, columns), and its caption."""
        token = self.token
        if query:
            token = attention.num_class_tokens(self.model) + query[0] * self.backbone[block].grid[1] + query[1]
        words = f"to block {block + 1}"
        if method == "rollout":
            values = attention.rollout(maps[: block + 1], self.model, self.fusion, token)
        elif method == "gradient":
            values = attention.relevance(maps[: block + 1], gradients[: block + 1], self.model, token)
        else:
            heads = maps[block]  # (1, h, N, N)
            rows = attention.FUSIONS[self.fusion](heads, axis=1) if head is None else heads[:, head]
            values = attention.on_grid(rows[:, token], self.model, block)
            words = f"block {block + 1}" if head is None else f"block {block + 1}, head {head + 1}"
        return values[0].numpy(), words


class StageMaps:
    """Maps of a layer with attention before the blocks: a token layer of a T2T module."""

    def __init__(self, args, model, names):
        self.model, self.names, self.number = model, names, args.stage
        given = [name for name in ("method", "block", "head", "class_id", "token") if getattr(args, name) is not None]
        if given:
            option = given[0].replace("_", "-")
            raise UserError(f"--{option} is for the backbone and --stage for the T2T module: give one of them")
        stages = attention.attending_stages(model)
        if not stages:
            raise UserError("--stage is for a T2T module with attention, which this model does not have")
        if not 1 <= args.stage <= len(stages):
            raise UserError(f"--stage is {args.stage} but the layers of the T2T module are 1 to {len(stages)}")
        self.stage = stages[args.stage - 1]
        self.queries = args.query or [tuple(length * i // 4 for length in self.stage.grid) for i in (1, 2, 3)]
        _check_queries(self.queries, self.stage.grid, f"layer {args.stage} of the T2T module")

    def explanations(self):
        """What the sheet shows."""
        rows, columns = self.stage.grid
        return [
            f"what the marked token takes from the {rows} x {columns} tokens of layer {self.number} of the T2T module",
            _SCALE,
            "sum: sum of the whole map (1, apart from the performer's eps)",
        ]

    def draw(self, picture):
        """The predicted class in words, and a row of `Cell`s with the maps over a `Picture`."""
        indices = [row * self.stage.grid[1] + column for row, column in self.queries]
        logits, maps = attention.token_maps(self.model, picture.pixels, self.number - 1, indices)
        box, cells = attention.grid_box(self.stage.windows, self.stage.grid), []
        for query, values in zip(self.queries, maps[0].numpy()):
            lines = (f"layer {self.number}, token {query[0] + 1},{query[1] + 1}", f"sum {values.sum():.3f}")
            cells.append(_cell(picture.image, values, lines, box, cell(box, self.stage.grid, query)))
        return _answer(logits, self.names), [cells]


def _cell(image, values, lines, box, mark):
    """`Cell` of a map in its `box` over an image, with a frame around the box `mark` if given (both in pixels)."""
    drawn = overlay(image, values, box=box)
    return Cell(marked(drawn, scaled(mark, drawn.width / image.width)) if mark else drawn, lines)


def _joined(rows):
    """Rows of one cell each as a single row; others as they are."""
    return rows if max(map(len, rows)) > 1 else [sum(rows, [])]


def _chosen_methods(args):
    """Those of --method, or else all that the other options allow."""
    single_heads = args.head is not None and args.head not in attention.FUSIONS
    if args.method == "rollout" and single_heads or args.method == "gradient" and args.head not in (None, "mean"):
        allowed = ", ".join(attention.FUSIONS) if args.method == "rollout" else "mean"
        raise UserError(f"--head is {args.head} but --method {args.method} takes only {allowed}")
    if args.method == "gradient" and args.query:
        raise UserError("--query does not fit --method gradient: the logits depend on the class token alone")
    if args.method:
        return [args.method]
    if single_heads or args.query:
        return ["attention"]
    return ["attention", "rollout", "gradient"] if args.head in (None, "mean") else ["attention", "rollout"]


def _chosen_token(args, model):
    """Index of the token to draw the attention of (0 class, 1 distillation) if --query is not given."""
    if args.token and args.query:
        raise UserError("--token and --query both choose a token: give one of them")
    if args.token == "distillation" and attention.num_class_tokens(model) < 2:
        raise UserError("--token distillation is for a distilled model, which this is not")
    return 1 if args.token == "distillation" else 0


def _check_queries(queries, grid, where):
    for row, column in queries:
        if row >= grid[0] or column >= grid[1]:
            raise UserError(
                f"--query is {row + 1},{column + 1} but the tokens of {where} are 1,1 to {grid[0]},{grid[1]}"
            )


def _answer(logits, names):
    """The predicted class and its probability, in words."""
    logits = logits[0].astype("float64").numpy()
    exponentials = np.exp(logits - logits.max())
    best = int(exponentials.argmax())
    return f"{short_name(names[best])} {exponentials[best] / exponentials.sum():.2f}"
