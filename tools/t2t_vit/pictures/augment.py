"""The picture `augment`: training images as they are in the first 15 epochs, and mixed images with their targets."""

import dataclasses

import numpy as np
import paddle.nn.functional as F

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import check_outputs
from t2t_vit.common.logger import progress_bar, setup_logging
from t2t_vit.config import with_classes
from t2t_vit.data.batch import TrainInput, to_tensors
from t2t_vit.data.dataset import load_data
from t2t_vit.data.images import load_image, reading
from t2t_vit.data.loader import TrainCollate, TrainDataset, to_batch
from t2t_vit.data.mixup import Mixup
from t2t_vit.parallel import processes
from t2t_vit.pictures.sheet import FAINT, Cell, Heading, check_sheet, save_sheet, short_name

EPOCHS = 15  # augmented versions of an image
MIXED_EPOCHS = 4
PAIRS = 5  # mixed images shown of a batch of twice as many


def draw_augment(args, cfg):
    """Write the sheet that the options describe. Raises UserError."""
    if args.count < 1:
        raise UserError(f"--count is {args.count} but must be 1 or more")
    check_sheet(args.sheet, args.inputs)
    processes.setup(cfg)
    setup_logging()
    classes, splits = load_data(cfg, ["train"])
    check_outputs([args.sheet], pictures=splits["train"].paths)
    save_sheet(augment_rows(splits["train"], classes.names, with_classes(cfg, len(classes)), args.count), args.sheet)


def augment_rows(split, names, cfg, count):
    """The rows of the sheet: `count` images with their augmented versions, then mixed images."""
    dataset = TrainDataset(split, cfg)
    rows = [Heading(f"{cfg.NAME}: what training sees of an image in epochs 1 to {EPOCHS}", (augment_settings(cfg),))]
    rows += [[Cell(None, ((text, FAINT),)) for text in ("image", *(f"epoch {n + 1}" for n in range(EPOCHS)))]]
    for index in progress_bar(choose(split.labels, count, cfg.SEED), desc="augment"):
        whole = load_image(split.paths[index], **reading(cfg))
        versions = [Cell(pixels) for pixels in augmented(dataset, index, cfg)]
        rows.append([Cell(whole, (short_name(names[split.labels[index]]),)), *versions])
    if not Mixup(cfg).is_on(0):
        return [*rows, Heading("mixing is off in this config", ("AUG.MIXUP, AUG.CUTMIX or AUG.MIX_PROB is 0",))]
    rows.append(Heading("mixed: an image + another of its batch = what training sees", (mixing_settings(cfg),)))
    chosen = choose(split.labels, 2 * PAIRS, cfg.SEED)
    indices = [chosen[place % len(chosen)] for place in range(2 * PAIRS)]
    return rows + [mixed_row(dataset, epoch, indices, names, cfg) for epoch in range(MIXED_EPOCHS)]


def choose(labels, count, seed):
    """Indices of at most `count` random images. Every class is used once before any is used twice."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    ordered = labels[order][by_class]
    turn = np.empty(len(labels), np.int64)  # images of the same class before each image of `order`
    turn[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return order[np.argsort(turn, kind="stable")][:count].tolist()


def read_batch(dataset, samples, cfg):
    """`Batch` of samples (epoch, index, copy), as the training loader makes it."""
    return to_batch(*to_tensors(TrainCollate(cfg)([dataset[sample] for sample in samples])))


def augmented(dataset, index, cfg):
    """uint8 (EPOCHS, S, S, C): the augmented image of each epoch, before mixing, as if first in its batch."""
    batches = [read_batch(dataset, [(epoch, index, 0)], cfg) for epoch in range(EPOCHS)]
    return np.concatenate([unmixed(batch, cfg) for batch in batches])


def unmixed(batch, cfg):
    """uint8 (B, S, S, C): the images of a `Batch` without mixing."""
    return to_pixels(TrainInput(cfg)(dataclasses.replace(batch, mixing=None))[0], cfg)


def mixed_batch(dataset, epoch, indices, cfg):
    """(uint8 images before mixing, uint8 mixed images, labels (B,), targets (B, K)) of a batch in an epoch."""
    batch = read_batch(dataset, [(epoch, index, 0) for index in indices], cfg)
    # With AUG.ERASE_MIXED the boxes are erased after mixing.
    sources = batch.images.numpy() if cfg.AUG.ERASE_MIXED else unmixed(batch, cfg)
    mixed, targets = TrainInput(cfg)(batch)
    if targets.ndim == 1:  # AUG.MIX_OFF_EPOCH has ended mixing; the loss smooths these labels
        smoothing = cfg.TRAIN.LABEL_SMOOTHING
        targets = F.label_smooth(F.one_hot(targets, cfg.MODEL.NUM_CLASSES), epsilon=smoothing)
    return sources, to_pixels(mixed, cfg), batch.labels.numpy(), targets.numpy()


def to_pixels(images, cfg):
    """The model's input (B, C, S, S) back to uint8 (B, S, S, C); noise beyond black and white is clipped."""
    pixels = images.numpy().transpose(0, 2, 3, 1) * np.array(cfg.DATA.STD) + np.array(cfg.DATA.MEAN)
    return np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)


def mixed_row(dataset, epoch, indices, names, cfg):
    """PAIRS times an image, its partner in the reversed batch, and their mix with its target."""
    sources, mixed, labels, targets = mixed_batch(dataset, epoch, indices, cfg)
    row = [Cell(None, ((f"epoch {epoch + 1}", FAINT),))]
    for i in range(PAIRS):
        for place, sign in ((i, "+"), (-1 - i, "=")):
            row.append(Cell(sources[place], ((short_name(names[labels[place]]), FAINT),), sign, shaded=True))
        lines = target_lines(targets[i], labels[i], labels[-1 - i], names, cfg.TRAIN.LABEL_SMOOTHING)
        row.append(Cell(mixed[i], lines, shaded=True))
    return row


def target_lines(target, label, partner, names, smoothing):
    """A row of targets without label smoothing: ("0.63 zebra", "+ 0.37 tench"), the image's own class first."""
    own = (target[label] - smoothing / len(target)) / (1 - smoothing)
    weight = min(max(round(float(own), 2), 0.0), 1.0)
    first = f"{weight:.2f} {short_name(names[label])}"
    return (first,) if label == partner or weight == 1 else (first, f"+ {1 - weight:.2f} {short_name(names[partner])}")


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
