"""The picture `augment`: what training sees.

Images with their first 15 augmented versions, and mixed ones with their targets.
"""

import dataclasses
import re

from t2t_vit.cli import common_parser, not_empty
from t2t_vit.pictures.sheet import (
    COLUMNS,
    FAINT,
    GAP,
    SHADE,
    TILE,
    blank,
    check_sheet,
    heading,
    left_of,
    save,
    short_name,
    stack,
    thumbnail,
    tile,
    write,
)

EPOCHS = COLUMNS - 1  # augmented versions of an image
MIXED_EPOCHS = 4
PAIRS = 5  # mixed images that are shown of a batch of twice as many


def main(args, cfg):
    from t2t_vit.common.errors import UserError
    from t2t_vit.common.files import check_outputs, display_path
    from t2t_vit.common.logger import log, setup_logging
    from t2t_vit.parallel import processes

    if args.count < 1:
        raise UserError(f"--count is {args.count} but must be 1 or more")
    check_sheet(args.sheet)
    check_outputs([args.sheet], args.inputs)
    processes.setup(cfg)
    setup_logging()
    save(augment_sheet(args, cfg), args.sheet)
    log.info("%s written", display_path(args.sheet))


def parser():
    parser = common_parser("Draw what training sees of some images.", batch_size_key="TRAIN.BATCH_SIZE")
    parser.usage = "visualize.py augment [options] [KEY VALUE ...]"
    parser.add_argument(
        "--sheet", type=not_empty, default="augment.png", metavar="FILE", help=".png or .jpg; default augment.png"
    )
    parser.add_argument("--count", type=int, default=4, metavar="N", help="images in a row each; default 4")
    return parser


# --- What training sees ---


def augment_sheet(args, cfg):
    """The contact sheet."""
    from t2t_vit.common.files import check_outputs
    from t2t_vit.common.logger import progress_bar
    from t2t_vit.config import with_classes
    from t2t_vit.data.dataset import load_data
    from t2t_vit.data.loader import TrainDataset

    classes, splits = load_data(cfg, ["train"])
    check_outputs([args.sheet], pictures=splits["train"].paths)
    cfg = with_classes(cfg, len(classes))
    dataset = TrainDataset(splits["train"], cfg)
    chosen = choose(splits["train"].labels, args.count, cfg.SEED)
    strips = [heading(f"{cfg.NAME}: what training sees of an image in epochs 1 to {EPOCHS}", augment_settings(cfg))]
    strips += [epoch_numbers()]
    for index in progress_bar(chosen, desc="augment"):
        strips.append(image_strip(dataset, index, classes, cfg))
    if not is_mixing(cfg):
        return stack([*strips, heading("mixing is off in this config", "AUG.MIXUP, AUG.CUTMIX or AUG.MIX_PROB is 0")])
    strips.append(heading("mixed: an image + another of its batch = what training sees", mixing_settings(cfg)))
    batch = wrapped(choose(splits["train"].labels, 2 * PAIRS, cfg.SEED))
    for epoch in range(MIXED_EPOCHS):
        strips.append(mixed_strip(*mixed_batch(dataset, epoch, batch, cfg), epoch, classes, cfg))
    return stack(strips)


def choose(labels, count, seed):
    """Indices of `count` images, all if they are fewer, drawn from the seed: no class twice before each came once."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    numbers = labels[order][by_class]
    turn = np.empty(len(labels), np.int64)  # how many of its class come before an image
    turn[by_class] = np.arange(len(labels)) - np.searchsorted(numbers, numbers)
    return order[np.argsort(turn, kind="stable")][:count].tolist()


def wrapped(indices):
    """2 * PAIRS indices, some again where there are too few images."""
    return [indices[i % len(indices)] for i in range(2 * PAIRS)]


def without_mixing(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.AUG.MIXUP = cfg.AUG.CUTMIX = 0.0
    cfg.freeze()
    return cfg


def is_mixing(cfg):
    from t2t_vit.data.mixup import Mixup

    return Mixup(cfg).is_on(0)


def read_batch(dataset, samples, cfg):
    """`Batch` of some samples (epoch, index, copy), as the training loader makes it."""
    import paddle

    from t2t_vit.data.loader import TrainCollate, to_batch

    images, labels, drawn, *rest = TrainCollate(cfg)([dataset[sample] for sample in samples])
    images, labels, *drawn = map(paddle.to_tensor, (images, labels, *drawn))
    return to_batch(images, labels, drawn, *rest)


def augmented(dataset, index, cfg):
    """uint8 (EPOCHS, S, S, channels): an image in each epoch, as if it were the first of its batch, before mixing."""
    import numpy as np

    from t2t_vit.data.batch import TrainInput

    prepare = TrainInput(cfg)
    batches = (read_batch(dataset, [(epoch, index, 0)], without_mixing(cfg)) for epoch in range(EPOCHS))
    return np.concatenate([to_pixels(prepare(batch)[0], cfg) for batch in batches])


def mixed_batch(dataset, epoch, indices, cfg):
    """(uint8 images before mixing, uint8 mixed images, labels, targets (B, K)) of a batch in an epoch."""
    import paddle.nn.functional as F

    from t2t_vit.data.batch import TrainInput

    batch, prepare = read_batch(dataset, [(epoch, index, 0) for index in indices], cfg), TrainInput(cfg)
    sources = batch.images.numpy()
    if not cfg.AUG.ERASE_MIXED:
        sources = to_pixels(prepare(dataclasses.replace(batch, mixing=None))[0], cfg)
    mixed, targets = prepare(batch)
    if targets.ndim == 1:  # mixing has ended before this epoch; the loss smooths these
        smoothing = cfg.TRAIN.LABEL_SMOOTHING
        targets = F.label_smooth(F.one_hot(targets, cfg.MODEL.NUM_CLASSES), epsilon=smoothing)
    return sources, to_pixels(mixed, cfg), batch.labels.numpy(), targets.numpy()


def to_pixels(images, cfg):
    """The model's input (B, C, S, S) back to uint8 (B, S, S, C); noise beyond black and white is clipped."""
    import numpy as np

    pixels = images.numpy().transpose(0, 2, 3, 1) * np.array(cfg.DATA.STD) + np.array(cfg.DATA.MEAN)
    return np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)


def target_text(target, label, partner, names, smoothing):
    """A row of targets without its label smoothing: "0.63 zebra + 0.37 tench", the image's own class first."""
    own = (target[label] - smoothing / len(target)) / (1 - smoothing)
    share = min(max(round(float(own), 2), 0.0), 1.0)
    if label == partner or share == 1:
        return f"{share:.2f} {short_name(names[label])}"
    return f"{share:.2f} {short_name(names[label])} + {1 - share:.2f} {short_name(names[partner])}"


def augment_settings(cfg):
    aug = cfg.AUG
    jitter = f", COLOR_JITTER {aug.COLOR_JITTER:g}" if aug.AUTO_AUGMENT in ("", "3a") else ""
    scale = f"SCALE {aug.SCALE[0]:g} to {aug.SCALE[1]:g}"
    crop = f"PADDED_CROP {aug.PADDED_CROP:g}" if aug.PADDED_CROP else scale
    return (
        f"AUTO_AUGMENT {aug.AUTO_AUGMENT or 'off'}{jitter}, {crop}, "
        f"HFLIP {aug.HFLIP:g}, ERASE_PROB {aug.ERASE_PROB:g} ({aug.ERASE_MODE}), SEED {cfg.SEED}"
    )


def mixing_settings(cfg):
    aug = cfg.AUG
    return (
        f"MIXUP {aug.MIXUP:g}, CUTMIX {aug.CUTMIX:g}, MIX_PROB {aug.MIX_PROB:g}, MIX_MODE {aug.MIX_MODE}; "
        f"targets without their LABEL_SMOOTHING {cfg.TRAIN.LABEL_SMOOTHING:g}"
    )


# --- Strips of the sheet ---


def epoch_numbers():
    strip, draw = blank(26)
    for column in range(COLUMNS):
        text = "image" if column == 0 else f"epoch {column}"
        write(draw, text, left_of(column), 2, TILE, ink=FAINT)
    return strip


def image_strip(dataset, index, classes, cfg):
    """One row: the image as it is, its class, and its augmented versions."""
    from t2t_vit.data.images import load_image, reading

    strip, draw = blank(TILE + 34)
    strip.paste(thumbnail(load_image(dataset.split.paths[index], **reading(cfg))), (left_of(0), 0))
    write(draw, short_name(classes.names[dataset.split.labels[index]]), left_of(0), TILE + 4, TILE)
    for column, pixels in enumerate(augmented(dataset, index, cfg), start=1):
        strip.paste(tile(pixels), (left_of(column), 0))
    return strip


def mixed_strip(sources, mixed, labels, targets, epoch, classes, cfg):
    """One row: PAIRS times an image, its partner in the reversed batch, and their mix with its target."""
    strip, draw = blank(TILE + 56)
    write(draw, f"epoch {epoch + 1}", left_of(0), TILE // 2 - 10, TILE, ink=FAINT)
    for i in range(PAIRS):
        partner, first = -1 - i, 1 + 3 * i
        draw.rectangle((left_of(first), 0, left_of(first + 2) + TILE - 1, TILE + 46), SHADE)
        for column, pixels in enumerate((sources[i], sources[partner], mixed[i]), start=first):
            strip.paste(tile(pixels), (left_of(column), 0))
        for column, number, sign in ((first, i, "+"), (first + 1, partner, "=")):
            write(draw, short_name(classes.names[labels[number]]), left_of(column) + 3, TILE + 4, TILE - 3, ink=FAINT)
            write(draw, sign, left_of(column) + TILE + 1, TILE // 2 - 9, GAP)
        text = target_text(targets[i], labels[i], labels[partner], classes.names, cfg.TRAIN.LABEL_SMOOTHING)
        for line, part in enumerate(re.split(r" (?=\+ \d)", text)):
            write(draw, part, left_of(first + 2), TILE + 4 + 20 * line, TILE)
    return strip
