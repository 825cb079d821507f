"""Which maps of a model the picture `attention` shows, how they are computed, named and explained."""

from collections import namedtuple

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.explain import attention
from t2t_vit.explain.attention import backbone, num_class_tokens, on_grid, stage_box, token_box, token_grid
from t2t_vit.explain.overlay import cell, marked, overlay, scaled
from t2t_vit.models.t2t import T2TViT
from t2t_vit.pictures.sheet import short_name

# A map (rows, columns), what stands above it, and in pixels the boxes of the map and of the token that looks, or None.
Panel = namedtuple("Panel", "values caption box looking")


def open_look(args, model, names):
    """`BackboneLook` or, with --stage, `ModuleLook` of what the options of the command line choose.

    Raises UserError, naming what there is, for an option that asks for something else.
    """
    return (BackboneLook if args.stage is None else ModuleLook)(args, model, names)


def drawn(image, panel):
    """The picture with the map of a `Panel` over it."""
    picture = overlay(image, panel.values, box=panel.box)
    return marked(picture, scaled(panel.looking, picture.width / image.width)) if panel.looking else picture


class BackboneLook:
    """Maps of blocks: `explanations`, and `at(pixels)`."""

    def __init__(self, args, model, names):
        self.model, self.names, self.class_id = model, names, args.class_id
        self.steps = backbone(model)
        self.blocks = self._chosen_blocks(args.block)
        self.methods = _chosen_methods(args)
        self.fused = args.head if args.head in attention.FUSIONS else "mean"
        self.heads = [self._chosen_heads(args.head, block) for block in self.blocks]
        self.token = _chosen_token(args, model)
        for block in self.blocks if args.query else ():
            _check_queries(args.query, token_grid(model, block), f"block {block + 1}")
        self.queries = args.query or [None]
        if args.class_id is not None and "gradient" not in self.methods:
            raise UserError(f"--class-id is of the method gradient, but this draws {' and '.join(self.methods)} alone")
        if args.class_id is not None and not 0 <= args.class_id < len(names):
            raise UserError(f"--class-id is {args.class_id} but the classes are 0 to {len(names) - 1}")

    def _chosen_blocks(self, block):
        count = len(self.steps)
        if block == "all":
            return list(range(count))
        if block and block > count:
            raise UserError(f"--block is {block} but the model's blocks are 1 to {count}")
        return [block - 1 if block else count - 1]

    def _chosen_heads(self, head, block):
        """[None], what is taken over the heads, or places of heads."""
        if head is None or head in attention.FUSIONS:
            return [None]
        count = self.steps[block][0].attn.num_heads
        if head == "all":
            return list(range(count))
        if head > count:
            raise UserError(f"--head is {head} but the heads of block {block + 1} are 1 to {count}")
        return [head - 1]

    def explanations(self):
        looks = ["the class token", "the distillation token"][self.token]
        looks = "the marked token" if self.queries[0] else looks
        texts = {
            "attention": f"attention: what {looks} takes from each patch in one block, {self.fused} of its heads",
            "rollout": f"rollout: what reaches {looks} from each patch through the blocks (Abnar and Zuidema, 2020)",
            "gradient": "gradient: where the attention of the blocks speaks for a class (Chefer et al., 2021)",
        }
        if self.heads[0] != [None]:
            texts["attention"] = f"attention: what {looks} takes from each patch in one head of one block"
        return [*(texts[method] for method in self.methods), "each from its least value, dark, to its largest, light"]

    def at(self, pixels):
        """An input (1, C, H, W): the answer in words, and rows of `Panel`s."""
        gradients = None
        if "gradient" in self.methods:
            logits, maps, gradients = attention.attention_gradients(self.model, pixels, self.class_id)
        else:
            with paddle.no_grad():
                logits, maps, _ = attention.trace(self.model, pixels)
        class_id = int(logits[0].argmax()) if self.class_id is None else self.class_id
        found, rows = (maps, gradients, short_name(self.names[class_id])), []
        for method in self.methods:
            for query in self.queries:
                lines = [
                    [self._panel(found, method, block, head, query) for head in heads]
                    for block, heads in zip(self.blocks, self.heads)
                ]
                rows += lines if max(map(len, lines)) > 1 else [sum(lines, [])]
        return _answer(logits, self.names), rows if max(map(len, rows)) > 1 else [sum(rows, [])]

    def _panel(self, found, method, block, head, query):
        maps, gradients, name = found
        grid, token = token_grid(self.model, block), self.token
        if query:
            token = num_class_tokens(self.model) + query[0] * grid[1] + query[1]
        if method == "rollout":
            values, words = attention.rollout(maps[: block + 1], self.model, self.fused, token), f"to block {block + 1}"
        elif method == "gradient":
            values = attention.relevance(maps[: block + 1], gradients[: block + 1], self.model, token)
            words = f"to block {block + 1}"
        else:
            heads = maps[block]
            rows = attention.FUSIONS[self.fused](heads, axis=1) if head is None else heads[:, head]
            values, words = on_grid(rows[:, token], self.model, block), f"block {block + 1}"
            words += "" if head is None else f", head {head + 1}"
        whose = f" of {query[0] + 1},{query[1] + 1}" if query else ""
        whose = f": {name}" if method == "gradient" else whose
        looking = cell(token_box(self.model, block), grid, query) if query else None
        box = token_box(self.model, block if method == "attention" else 0)
        return Panel(values[0].numpy(), f"{method}{whose}\n{words}", box, looking)


class ModuleLook:
    """Maps of a layer of the T2T module: `explanations`, and `at(pixels)`."""

    def __init__(self, args, model, names):
        self.model, self.names, self.stage = model, names, args.stage
        given = [name for name in ("method", "block", "head", "class_id", "token") if getattr(args, name) is not None]
        if given:
            raise UserError(
                f"--{given[0].replace('_', '-')} is of the backbone, --stage of the T2T module: leave one out"
            )
        if not isinstance(model, T2TViT):
            raise UserError("--stage is of the T2T module, which a PiT has not")
        count = attention.attending_stages(model.tokens_to_token)
        if not count:
            raise UserError("--stage: with the token type convolution the T2T module has no attention")
        if not 1 <= args.stage <= count:
            raise UserError(f"--stage is {args.stage} but the layers of the T2T module are 1 to {count}")
        self.grid = model.tokens_to_token.grids[args.stage - 1]
        self.queries = args.query or [tuple(length * part // 4 for length in self.grid) for part in (1, 2, 3)]
        _check_queries(self.queries, self.grid, f"layer {args.stage} of the T2T module")

    def explanations(self):
        rows, columns = self.grid
        return [
            f"what the marked token takes from the {rows} x {columns} tokens of layer {self.stage} of the T2T module",
            "each from its least value, dark, to its largest, light",
            "sum: of all that it takes, which is 1 but for the performer's eps",
        ]

    def at(self, pixels):
        """An input (1, C, H, W): the answer in words, and rows of `Panel`s."""
        with paddle.no_grad():
            logits = self.model(pixels)
        places = [row * self.grid[1] + column for row, column in self.queries]
        maps = attention.token_maps(self.model, pixels, self.stage - 1, places)[0].numpy()
        box = stage_box(self.model, self.stage - 1)
        panels = [
            Panel(
                values,
                f"layer {self.stage}, token {query[0] + 1},{query[1] + 1}\nsum {values.sum():.3f}",
                box,
                cell(box, self.grid, query),
            )
            for query, values in zip(self.queries, maps)
        ]
        return _answer(logits, self.names), [panels]


def _chosen_methods(args):
    """Those of --method, else those that the other options leave a meaning."""
    single_heads = args.head is not None and args.head not in attention.FUSIONS
    if args.method == "rollout" and single_heads or args.method == "gradient" and args.head not in (None, "mean"):
        allowed = ", ".join(attention.FUSIONS) if args.method == "rollout" else "mean"
        raise UserError(f"--head is {args.head} but --method {args.method} takes {allowed} of the heads")
    if args.method == "gradient" and args.query:
        raise UserError("--query is not of --method gradient: the answer depends on the class token alone")
    if args.method:
        return [args.method]
    if single_heads or args.query:
        return ["attention"]
    return ["attention", "rollout", "gradient"] if args.head in (None, "mean") else ["attention", "rollout"]


def _chosen_token(args, model):
    """Place of the token that looks where no --query says another."""
    if args.token and args.query:
        raise UserError("--token and --query both say which token looks: leave one out")
    if args.token == "distillation" and num_class_tokens(model) < 2:
        raise UserError("--token distillation is of a distilled PiT, which this model is not")
    return 1 if args.token == "distillation" else 0


def _check_queries(queries, grid, what):
    for row, column in queries:
        if row >= grid[0] or column >= grid[1]:
            raise UserError(
                f"--query is {row + 1},{column + 1} but the tokens of {what} are 1,1 to {grid[0]},{grid[1]}"
            )


def _answer(logits, names):
    """The predicted class and its probability, in words."""
    logits = logits[0].astype("float64").numpy()
    chances = np.exp(logits - logits.max())
    best = int(chances.argmax())
    return f"{short_name(names[best])} {chances[best] / chances.sum():.2f}"
