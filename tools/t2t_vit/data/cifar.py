"""Read CIFAR-10 and CIFAR-100 from their authors' archives (cs.toronto.edu/~kriz/cifar.html), binary or Python form.

The Python form is a pickle. It is read without running any code from it.
"""

import contextlib
import io
import re

import numpy as np
from PIL import Image

from t2t_vit.common.errors import UserError
from t2t_vit.common.unpickle import Unpickler
from t2t_vit.data.archives import Entry, tar_entries

_SIDE = 32  # pixels
_PIXELS = 3 * _SIDE * _SIDE  # bytes of an image: red, then green, then blue, each row by row
_BATCH = 10_000  # images in each data_batch file; numbering continues from file to file
_LARGEST = 2**28  # limit for a batch file in bytes; the largest one, of CIFAR-100, has 155 million
# {batch file: (split, number of its first image)}
_CIFAR10 = {"test_batch": ("test", 0), **{f"data_batch_{i + 1}": ("train", i * _BATCH) for i in range(5)}}
_CIFAR100 = {"train": ("train", 0), "test": ("test", 0)}
# {folder in the archive: (batch files; file of the class names; key of the names if it is a pickle; key of the labels,
# or byte of the label; number of label bytes before the pixels)}. For CIFAR-100, these are the fine classes.
_FORMS = {
    "cifar-10-batches-bin": (_CIFAR10, "batches.meta.txt", None, 0, 1),
    "cifar-100-binary": (_CIFAR100, "fine_label_names.txt", None, 1, 2),
    "cifar-10-batches-py": (_CIFAR10, "batches.meta", "label_names", "labels", 0),
    "cifar-100-python": (_CIFAR100, "meta", "fine_label_names", "fine_labels", 0),
}


def form_of(file):
    """Return the key of `_FORMS` if the first entry shows that an open file is a CIFAR archive, else None."""
    first = None
    with contextlib.suppress(Exception):  # damaged, or not a tar archive: `archives.entries` will report it
        first = next(tar_entries(file), None)
    file.seek(0)
    folder = first.name.split("/")[0] if first else ""
    return folder if folder in _FORMS else None


def entries(file, path, form):
    """Yield an `Entry` such as train/cat/00042.png for each image. The whole archive is read before the first one.

    Raises:
        UserError: the archive is not CIFAR. Errors of `tarfile` and `gzip` for a damaged archive are not caught.
    """
    places, meta, names_entry, label_entry, label_bytes = _FORMS[form]
    files, images = _read_files(file, {meta, *places}), []
    try:
        names = Unpickler(files[meta]).load()[names_entry] if names_entry else files[meta].decode("ascii").split()
        if not all(re.fullmatch(r"\w[\w -]*", name) for name in names):  # the names become folders
            raise ValueError(f"classes named {names}")
        for name, (split, first) in places.items():
            labels, pixels = _batch(files[name], label_entry, label_bytes)
            if len(labels) != len(pixels) or not all(0 <= label < len(names) for label in labels):
                raise ValueError(f"{name} has {len(pixels)} images, but not a label from {len(names)} classes for each")
            images += [(f"{split}/{names[label]}/{first + i:05d}.png", pixels[i]) for i, label in enumerate(labels)]
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} is damaged or not a CIFAR archive ({type(error).__name__}: {error})") from error
    for name, image in images:
        yield Entry(name, None, True, lambda image=image: _png(image))


def _png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    stream.seek(0)
    return stream


def _read_files(file, wanted):
    """Return {name without .bin: content} for the `wanted` files in an archive."""
    files = {}
    for entry in tar_entries(file):
        name = re.sub(r"\.bin$", "", entry.parts[-1])
        if entry.is_safe and name in wanted and entry.size <= _LARGEST:
            files[name] = entry.open().read()
    return files


def _batch(content, label_entry, label_bytes):
    """Parse a batch file: (labels, pixels uint8 (N, 32, 32, 3))."""
    if label_bytes:
        records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + _PIXELS)
        labels, pixels = records[:, label_entry].tolist(), records[:, label_bytes:]
    else:
        batch = Unpickler(content).load()
        labels, pixels = batch[label_entry], batch["data"]
    return labels, pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
