"""CIFAR-10 and CIFAR-100 from the archives of their authors (cs.toronto.edu/~kriz/cifar.html), binary or Python form.

The Python form is a pickle, which is read without running any code of it.
"""

import io
import pickle
import re
import tarfile

import numpy as np

from t2t_vit.common.errors import UserError
from t2t_vit.data.archives import open_tar

_SIDE = 32  # pixels
_PIXELS = 3 * _SIDE * _SIDE  # bytes of an image: red, then green, then blue, each by rows
_BATCH = 10_000  # images of each data_batch file, by which the images are numbered through
# {batch file: (split, number of its first image)}
_CIFAR10 = {"test_batch": ("test", 0), **{f"data_batch_{i + 1}": ("train", i * _BATCH) for i in range(5)}}
_LARGEST = 2**28  # bytes of a batch file: CIFAR-100's have 155 million
_CIFAR100 = {"train": ("train", 0), "test": ("test", 0)}
# Folder in the archive: (batch files, file of the class names, its entry if pickled, entry or byte of the labels, bytes
# before the pixels of an image). CIFAR-100's classes are the fine ones.
_FORMS = {
    "cifar-10-batches-bin": (_CIFAR10, "batches.meta.txt", None, 0, 1),
    "cifar-100-binary": (_CIFAR100, "fine_label_names.txt", None, 1, 2),
    "cifar-10-batches-py": (_CIFAR10, "batches.meta", "label_names", "labels", 0),
    "cifar-100-python": (_CIFAR100, "meta", "fine_label_names", "fine_labels", 0),
}


def form_of(path):
    """Key of `_FORMS` that a tar archive has by its first entry, or None."""
    try:
        with open_tar(path) as archive:
            first = archive.next()
    except (tarfile.TarError, EOFError, OSError):
        return None
    folder = first.name.split("/")[0] if first else ""
    return folder if folder in _FORMS else None


def read_archive(path, form):
    """Yield ("train/cat/00042.png", uint8 (32, 32, 3)) for each image; the archive is read to its end before the first.

    Raises:
        UserError: what is in it is no CIFAR. What `tarfile` and `gzip` raise for a damaged archive goes through.
    """
    places, meta, names_entry, label_entry, label_bytes = _FORMS[form]
    files = _read_files(path, {meta, *places})
    try:
        missing = sorted({meta, *places} - set(files))
        if missing:
            raise ValueError(f"no {missing[0]}")
        names = _class_names(files[meta], names_entry)
        for name, (split, first) in places.items():
            labels, pixels = _batch(files[name], label_entry, label_bytes)
            if not all(0 <= label < len(names) for label in labels):
                raise ValueError(f"{name} has labels that are none of {len(names)} classes")
            for number, (label, image) in enumerate(zip(labels, pixels), start=first):
                yield f"{split}/{names[label]}/{number:05d}.png", image
    except Exception as error:  # a crafted pickle raises nearly anything
        raise UserError(f"{path} is damaged or no CIFAR archive ({type(error).__name__}: {error})") from error


def _read_files(path, wanted):
    """{name without .bin: content} of the files that matter."""
    files = {}
    with open_tar(path) as archive:
        for member in archive:
            name = re.sub(r"\.bin$", "", member.name.split("/")[-1])
            if member.isreg() and name in wanted:
                if member.size > _LARGEST:
                    raise ValueError(f"{name} of {member.size} bytes")
                files[name] = archive.extractfile(member).read()
        while archive.fileobj.read(2**20):
            pass  # to the end of a .gz, where its checksum is
    return files


def _class_names(content, entry):
    names = _unpickle(content)[entry] if entry else content.decode("ascii").split()
    for name in names:
        if not re.fullmatch(r"\w[\w -]*", name):  # they become folders
            raise ValueError(f"a class named {name!r}")
    return names


def _batch(content, label_entry, label_bytes):
    """(labels, pixels uint8 (N, 32, 32, 3)) of a batch file."""
    if label_bytes:
        records = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + _PIXELS)
        labels, pixels = records[:, label_entry].tolist(), records[:, label_bytes:]
    else:
        batch = _unpickle(content)
        labels, pixels = batch[label_entry], batch["data"].array().reshape(-1, _PIXELS)
        if len(labels) != len(pixels):
            raise ValueError(f"{len(labels)} labels of {len(pixels)} images")
    return labels, pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)


# --- Pickles of Python 2 ---


def _unpickle(content):
    # Its byte strings are texts and the bytes of arrays; latin1 maps each byte to one character and back.
    return _Unpickler(io.BytesIO(content), encoding="latin1").load()


class _Unpickler(pickle.Unpickler):
    """Knows arrays of bytes, and gives no other class or function to a pickle."""

    def find_class(self, module, name):
        makers = {
            "numpy.core.multiarray._reconstruct": lambda *_: _Bytes(),
            "numpy.ndarray": None,
            "numpy.dtype": lambda code, *_: _ByteType(code),
        }
        full_name = f"{module.replace('numpy._core', 'numpy.core')}.{name}"  # numpy._core: written by NumPy 2
        if full_name not in makers:
            raise pickle.UnpicklingError(f"it names {full_name}, and a CIFAR batch is only bytes, numbers and texts")
        return makers[full_name]


class _ByteType:
    """The number type uint8."""

    def __init__(self, code):
        if code != "u1":
            raise ValueError(f"an array of {code!r}")

    def __setstate__(self, state):
        pass  # byte order and the like, of which a byte has none


class _Bytes:
    """An array of uint8, from the state (version, shape, type, is Fortran order, content)."""

    def __setstate__(self, state):
        _, self.shape, self.type, self.is_fortran, self.content = state

    def array(self):
        if not isinstance(self.type, _ByteType):
            raise ValueError("an array of another type")
        content = self.content if isinstance(self.content, bytes) else self.content.encode("latin1")
        return np.frombuffer(content, np.uint8).reshape(self.shape, order="F" if self.is_fortran else "C")
