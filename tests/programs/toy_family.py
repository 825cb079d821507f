"""A model family in one file: a convolutional stem and a plain transformer. test_family.py adds it to the zoo."""

import paddle
from paddle import nn
from paddle.nn.initializer import Normal

from t2t_vit.models.family import BlockPlace, Family, Stage, VisionTransformer, count_layers, through_blocks
from t2t_vit.models.layers import Block, LayerNorm, as_tokens

KERNEL, STRIDE, PADDING = 5, 4, 2


class ToyViT(VisionTransformer):
    """(B, Cin, H, W) -> (B, num_classes)."""

    def __init__(
        self, *, image_size=32, in_chans=3, num_classes=10, dim=32, depth=2, num_heads=2,
        qk_scale=None, drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0,
    ):  # fmt: skip
        super().__init__()
        self.image_size, self.in_chans = (image_size, image_size), in_chans
        self.side = (image_size + 2 * PADDING - KERNEL) // STRIDE + 1
        normal = Normal(std=0.02)
        self.stem = nn.Sequential(nn.Conv2D(in_chans, dim, KERNEL, STRIDE, PADDING), nn.ReLU())
        self.cls_token = self.create_parameter([1, 1, dim], default_initializer=normal)
        self.pos_embed = self.create_parameter([1, 1 + self.side**2, dim], default_initializer=normal)
        rates = dict(drop=drop_rate, attn_drop=attn_drop_rate, drop_path=drop_path_rate)
        self.blocks = nn.LayerList(Block(dim, num_heads, 2, qk_scale=qk_scale, **rates) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.add_heads(num_classes)
        self.apply(self.init_layer)

    def stages(self):
        return [Stage(self.stem, (self.side, self.side), [(KERNEL, STRIDE, PADDING)], output_name="stem")]

    def backbone(self):
        (stem,) = self.stages()
        return [BlockPlace(block, stem.grid, stem.windows) for block in self.blocks]

    def forward_tokens(self, x, num_queries=None):
        x = as_tokens(self.stem(x))  # (B, N, C)
        x = paddle.concat([self.cls_token.expand([x.shape[0], -1, -1]), x], axis=1) + self.pos_embed
        return through_blocks(self.blocks, x, num_queries)


def traits(variant):
    return variant["dim"], variant["depth"]


def read_shapes(shapes):
    dim, in_chans, *_ = shapes["stem.0.weight"]
    side = round((shapes["pos_embed"][1] - 1) ** 0.5)
    overrides = {"num_classes": shapes["head.bias"][0], "in_chans": in_chans, "image_size": side * STRIDE}
    return (dim, count_layers(shapes, "blocks.")), overrides


VARIANTS = {
    "toy_small": dict(dim=32, depth=2, num_heads=2, image_size=32),
    "toy_large": dict(dim=48, depth=3, num_heads=3, image_size=32),
}
FAMILY = Family("TOY", ToyViT, VARIANTS, traits, read_shapes)
