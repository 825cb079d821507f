"""The model that a config names, with or without weights from a file."""

from config import resolve, with_classes
from engine.checkpoint import count_classes, load_weights
from errors import UserError
from models import create_model


def build_model(cfg):
    """Model of MODEL.* and the DATA keys that shape its input, with fresh weights.

    Raises UserError for an unknown name or settings that do not fit together.
    """
    model = cfg.MODEL
    if not model.NUM_CLASSES:
        raise UserError(
            "MODEL.NUM_CLASSES is 0, as many as the data set or the weights have, but there are neither; set it"
        )
    overrides = {key.lower(): value for key, value in model.T2T.items() if value}
    try:
        return create_model(
            model.NAME,
            image_size=cfg.DATA.IMAGE_SIZE,
            in_chans=cfg.DATA.CHANNELS,
            num_classes=model.NUM_CLASSES,
            drop_rate=model.DROP_RATE,
            attn_drop_rate=model.ATTN_DROP_RATE,
            drop_path_rate=model.DROP_PATH_RATE,
            qk_scale=model.QK_SCALE or None,
            **overrides,
        )
    except ValueError as error:
        raise UserError(f"MODEL.NAME {model.NAME}: {error}") from error


def build_trained_model(cfg, chosen):
    """Model of `cfg` in eval mode, and the file that its weights are from.

    That is `chosen` (from the command line) if given, else best.pdparams of the config's run folder, else
    MODEL.PRETRAINED, from which a training of this config would start.

    Raises UserError if there is none, or it does not fit.
    """
    model = build_model(cfg) if cfg.MODEL.NUM_CLASSES else None
    best = resolve(f"{cfg.OUTPUT}/{cfg.NAME}/best.pdparams")
    path = resolve(chosen or (best if best.is_file() or not cfg.MODEL.PRETRAINED else cfg.MODEL.PRETRAINED))
    if not path.is_file():
        raise UserError(f"weights {path} not found; train first, or give a file with --pretrained FILE")
    model = model or build_model(with_classes(cfg, count_classes(path)))
    load_weights(model, path)
    model.eval()
    return model, path
