"""What a run logs at its start: versions, parameters, data, learning rates, and warnings about the recipe."""

import datetime
import math
import platform
import time

import paddle

from t2t_vit.common.logger import log
from t2t_vit.parallel import processes
from t2t_vit.training.parameters import parameter_groups


def log_summary(trainer):
    """Log what `trainer` is going to train."""
    cfg, step, loader = trainer.cfg, trainer.train_step, trainer.train_loader
    log.info(
        "%s, %s: PaddlePaddle %s on %s, %s, %d process(es), Python %s",
        cfg.NAME, datetime.datetime.now().isoformat(" ", "seconds"), paddle.__version__, paddle.device.get_device(),
        step.precision, processes.world_size(), platform.python_version(),
    )  # fmt: skip
    log.info("model %s: %s", cfg.MODEL.NAME, _parameters(step.model))
    if step.teacher:
        log.info("%s", step.teacher.summary)
    log.info(
        "data %s: %d train, %d val images; global batch %d, %d steps per epoch, %d epochs",
        cfg.DATA.NAME, loader.num_images, trainer.val_loader.num_images, loader.order.images_per_step, loader.steps(),
        trainer.total_epochs,
    )  # fmt: skip
    last = trainer.total_epochs - 1
    log.info("lr: %s", step.optimizer.rates.summary(sorted({0, min(cfg.TRAIN.WARMUP_EPOCHS, last), last})))
    _warn_of_short_average(cfg, trainer.total_epochs * loader.steps())
    log.info("ready %.1f s after the start", time.monotonic() - trainer.interrupts.started)


def _parameters(model):
    named = dict(model.named_parameters())
    counts = [
        f"{sum(math.prod(named[name].shape) for name in names)} {group} in {len(names)} tensors"
        for group, names in parameter_groups(model).items()
    ]
    return f"{sum(math.prod(parameter.shape) for parameter in named.values())} parameters: {', '.join(counts)}"


def _warn_of_short_average(cfg, steps):
    decay = cfg.TRAIN.EMA_DECAY
    if cfg.VAL.BEST == "ema" and decay and decay**steps > 0.05:  # weight of the initial weights in the end
        log.warning(
            "warning: TRAIN.EMA_DECAY %g averages over about %.0f steps and the run has %d: best.pdparams would "
            "hold much of the initial weights; set TRAIN.EMA_DECAY %g or VAL.BEST raw",
            decay, 1 / (1 - decay), steps, 1 - float(f"{min(4 / steps, 0.9):.1g}"),
        )  # fmt: skip
