"""The picture `features`: what the soft splits and the layers of a model make of images."""

from t2t_vit.pictures.attention import shown_name

EXPLAINED = {
    "pca": "each token coloured by the first three principal components of its layer, over all pictures of the sheet: "
    "what the layer takes for alike has one colour",
    "norm": "the length of each token, from the shortest of its layer on the sheet, dark, to the longest, light",
    "mean": "the mean of each token's values, from the least of its layer on the sheet, dark, to the largest, light",
}

CAPTIONS = {"pca": "rows x columns of tokens, numbers in each, share of the variance that the three components hold"}
CAPTIONS["norm"] = CAPTIONS["mean"] = "rows x columns of tokens, numbers in each, least and largest value"


def draw_features(args, cfg):
    """Write the sheet that the options describe; 1 if an image could not be read. Raises UserError."""
    from t2t_vit.common.logger import setup_logging
    from t2t_vit.explain.features import features
    from t2t_vit.explain.overlay import enlarged
    from t2t_vit.pictures.model import OVERLAY_TILE, chosen_paths, open_model, read_images
    from t2t_vit.pictures.sheet import Cell, Heading, check_sheet, lines_of, paired, save_sheet

    setup_logging()
    paths = chosen_paths(args)
    check_sheet(args.sheet, [*args.inputs, *paths])
    model, cfg, metadata = open_model(args, cfg)
    images, failed = read_images(paths, cfg, metadata)
    found = [features(model, pixels) for _, _, pixels in images]
    columns = [column(layers, args.show) for layers in chosen(list(zip(*found)), args.block)]
    lines = []
    for (path, image, _), row in zip(images, zip(*columns)):
        lines += lines_of(Cell(enlarged(image), (shown_name(path),)), [row])
    notes = (EXPLAINED[args.show], CAPTIONS[args.show])
    heading = Heading(f"{cfg.NAME}: what its layers make of a picture", notes)
    save_sheet([heading, *paired(lines)], args.sheet, OVERLAY_TILE)
    return 1 if failed else 0


def chosen(layers, block):
    """Those layers, a list of (name, tokens, grid) of each picture, that --block leaves."""
    from t2t_vit.common.errors import UserError

    blocks = [layer for layer in layers if layer[0][0].startswith("block ")]
    before = layers[: len(layers) - len(blocks)]
    if block == "all":
        return layers
    if block and block > len(blocks):
        raise UserError(f"--block is {block} but the model's blocks are 1 to {len(blocks)}")
    places = [block - 1] if block else sorted({0, len(blocks) // 2, len(blocks) - 1})
    return before + [blocks[place] for place in places]


def column(layers, show):
    """A layer's cells, (uint8 (rows, columns, 3), caption), of all pictures."""
    import numpy as np

    from t2t_vit.explain.overlay import coloured
    from t2t_vit.pictures.sheet import Cell

    name, tokens, (rows, columns) = layers[0]
    values = np.concatenate([tokens.numpy() for _, tokens, _ in layers]).astype(np.float64)  # (pictures, N, C)
    caption = f"{name}\n{rows}x{columns} of {values.shape[2]}"
    if show == "pca":
        colours, share = principal_colours(values.reshape(-1, values.shape[2]))
        caption += f", {100 * share:.0f} %"
    else:
        one = np.linalg.norm(values, axis=-1) if show == "norm" else values.mean(-1)
        caption += f", {one.min():.2g} to {one.max():.2g}"
        colours = coloured((one - one.min()) / ((one.max() - one.min()) or 1))
    return [Cell(each, tuple(caption.split("\n"))) for each in colours.reshape(len(layers), rows, columns, 3)]


def principal_colours(tokens):
    """The first three principal components of tokens (M, C) as colours, uint8 (M, 3), and their share of the variance.

    The signs are such that each component's largest weight is positive; 2 % of the values are clipped.
    """
    import numpy as np

    centred = tokens - tokens.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # from the least
    directions = directions[:, ::-1][:, :3]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(directions.shape[1])])
    values = centred @ directions
    low, high = np.percentile(values, (1, 99), axis=0)
    colours = np.zeros((len(tokens), 3))
    colours[:, : values.shape[1]] = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.rint(255 * colours).astype(np.uint8), variances[::-1][:3].sum() / (variances.sum() or 1)
