"""The picture `augment`: augmented training images of the first epochs, and mixed images with their targets."""

import argparse
import dataclasses
from collections import Counter

import numpy as np
import paddle.nn.functional as F
from yacs.config import CfgNode

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

EPOCHS = 7  # augmented versions of an image
MIXED_EPOCHS = 4
PAIRS = 2  # mixed images to show; their batch has twice as many
# Settings that the headings show.
AUGMENT_KEYS = ("AUTO_AUGMENT", "COLOR_JITTER", "SCALE", "PADDED_CROP", "HFLIP", "ERASE_PROB")
MIXING_KEYS = ("MIXUP", "CUTMIX", "MIX_PROB", "MIX_MODE")


def draw_augment(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Write the sheet that the options describe. Raises UserError."""
    check_sheet(args.sheet, args.inputs)
    processes.setup(cfg)
    setup_logging()
    classes, splits = load_data(cfg, ["train"])
    check_outputs([args.sheet], pictures=splits["train"].paths)
    save_sheet(augment_rows(splits["train"], classes.names, with_classes(cfg, len(classes)), args.count), args.sheet)


def augment_rows(split, names, cfg, count):
    """Return the rows of the sheet: `count` images with their augmented versions, then mixed images."""
    dataset = TrainDataset(split, cfg)
    title = f"{cfg.NAME}: training images after augmentation"
    columns = ("image", *(f"epoch {number}" for number in range(1, EPOCHS + 1)))
    rows = [Heading(title, (settings_line(cfg, AUGMENT_KEYS),)), [Cell(None, ((text, FAINT),)) for text in columns]]
    for index in progress_bar(choose(split.labels, count, cfg.SEED), desc="augment"):
        whole = load_image(split.paths[index], **reading(cfg))
        # The noise in erased boxes is drawn as if the image came first in its batch.
        batches = [read_batch(dataset, [(epoch, index, 0)], cfg) for epoch in range(EPOCHS)]
        versions = [Cell(unmixed(batch, cfg)[0]) for batch in batches]
        rows.append([Cell(whole, (short_name(names[split.labels[index]]),)), *versions])
    if not Mixup(cfg).is_on(0):
        return rows
    note = f"{settings_line(cfg, MIXING_KEYS)}; targets with LABEL_SMOOTHING {cfg.TRAIN.LABEL_SMOOTHING}"
    rows.append(Heading("mixing: an image + another image of its batch = the training image", (note,)))
    chosen = choose(split.labels, 2 * PAIRS, cfg.SEED)
    indices = [chosen[place % len(chosen)] for place in range(2 * PAIRS)]
    return rows + [mixed_row(dataset, epoch, indices, names, cfg) for epoch in range(MIXED_EPOCHS)]


def choose(labels, count, seed):
    """Choose up to `count` random images. Every class appears once before any appears twice. Returns indices."""
    order, seen, turns = np.random.default_rng(seed).permutation(len(labels)), Counter(), []
    for label in labels[order].tolist():
        turns.append(seen[label])  # number of earlier images of this class
        seen[label] += 1
    return order[np.argsort(turns, kind="stable")][:count].tolist()


def read_batch(dataset, samples, cfg):
    """Read samples (epoch, index, copy) as a `Batch`, like the training loader."""
    return to_batch(*to_tensors(TrainCollate(cfg)([dataset[sample] for sample in samples])))


def unmixed(batch, cfg):
    """Return the images of a `Batch` without mixing: uint8 (B, S, S, C)."""
    return to_pixels(TrainInput(cfg)(dataclasses.replace(batch, mixing=None))[0], cfg)


def mixed_batch(dataset, epoch, indices, cfg):
    """Return (uint8 images before mixing, uint8 mixed images, labels (B,), targets (B, K)) of a batch."""
    batch = read_batch(dataset, [(epoch, index, 0) for index in indices], cfg)
    # With AUG.ERASE_MIXED the boxes are erased after mixing.
    sources = batch.images.numpy() if cfg.AUG.ERASE_MIXED else unmixed(batch, cfg)
    mixed, targets = TrainInput(cfg)(batch)
    if targets.ndim == 1:  # AUG.MIX_OFF_EPOCH has ended mixing
        targets = F.one_hot(targets, cfg.MODEL.NUM_CLASSES)
    return sources, to_pixels(mixed, cfg), batch.labels.numpy(), targets.numpy()


def to_pixels(images, cfg):
    """Convert model input (B, C, S, S) back to uint8 (B, S, S, C). Noise beyond black and white is clipped."""
    pixels = images.numpy().transpose(0, 2, 3, 1) * np.array(cfg.DATA.STD) + np.array(cfg.DATA.MEAN)
    return np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)


def mixed_row(dataset, epoch, indices, names, cfg):
    """Build a row of PAIRS triples: an image, its partner in the reversed batch, and their mix with its target."""
    sources, mixed, labels, targets = mixed_batch(dataset, epoch, indices, cfg)
    row = [Cell(None, ((f"epoch {epoch + 1}", FAINT),))]
    for i in range(PAIRS):
        own, partner = labels[i], labels[-1 - i]
        one, other, shaded = short_name(names[own]), short_name(names[partner]), i % 2 == 0
        target = (f"= {targets[i][own]:.2f} {one}", f"+ {targets[i][partner]:.2f} {other}")
        row.append(Cell(sources[i], ((one, FAINT),), shaded))
        row.append(Cell(sources[-1 - i], ((f"+ {other}", FAINT),), shaded))
        row.append(Cell(mixed[i], target if own != partner else target[:1], shaded))
    return row


def settings_line(cfg, keys):
    """Format those of some keys of AUG that are on, with their values."""
    return ", ".join(f"{key} {cfg.AUG[key]}" for key in keys if cfg.AUG[key])
