"""Weights files of other programs: read without running code of theirs, and brought to our names and layout.

Our names are those of the official PyTorch code, and our arrays are Paddle's: Linear weights [in, out], which PyTorch
stores as [out, in].
"""

import argparse
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from engine import checkpoint
from errors import UserError, one_line
from files import atomic_path, is_web_page

# Where the weights of a larger file are; of several, the moving average first, as the programs themselves do. Our own
# training states give the raw model: their average is best.pdparams.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model", "net")
EXTRA = ("aux_head.weight", "aux_head.bias")  # of Token Labeling, unused at inference
# First bytes of torch.save: a zip archive, or before PyTorch 1.6 a pickle of its magic number.
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass(frozen=True)
class Weights:
    """What a file holds, by official names, in the layout of the file."""

    path: Path
    tensors: dict  # {name: array}
    extra: dict  # the same of tensors that no model here has
    form: str  # for the log: "PaddleViT T2T-ViT, entry model_ema, Paddle file"
    is_torch: bool  # written by PyTorch or safetensors, whose Linear weights are [out, in]

    @property
    def is_own(self):
        return checkpoint.is_own(self.path)

    @property
    def shapes(self):
        return {name: value.shape for name, value in self.tensors.items()}


def read_weights(path):
    """Recognise a weights file by its content and read it.

    Raises UserError: missing, damaged, of an unknown kind, or holding anything but data.
    """
    path = Path(path)
    kind, tree = _read(path)
    entry, tensors = _weights_of(tree)
    if not tensors:
        found = f"only {', '.join(map(str, list(tree)[:3]))}" if tree else "nothing"
        raise UserError(f"{path} holds no weights: no tensors, {found}")
    tensors, program = _official_names(_without_prefix(tensors))
    extra = {name: tensors.pop(name) for name in EXTRA if name in tensors}
    form = ", ".join(part for part in (program, entry and f"entry {entry}", f"{kind} file") if part)
    return Weights(path, tensors, extra, form, kind != "Paddle")


# --- Containers ---


def _read(path):
    """("PyTorch", "safetensors" or "Paddle", the dict in the file)."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    if not start:
        raise UserError(f"{path} is empty")
    if start.startswith(_TORCH):
        return "PyTorch", _read_torch(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors", _read_safetensors(path)
    if is_web_page(start):
        raise UserError(f"{path} is a web page, not weights: the link leads to a page; download the file behind it")
    return "Paddle", checkpoint.read(path)


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file, which PyTorch reads: pip install torch (its CPU build will do), or convert it "
            "with tools/convert.py where PyTorch is installed"
        ) from None
    if not hasattr(torch.serialization, "safe_globals"):
        raise UserError(f"PyTorch {torch.__version__} is too old to read {path} safely: pip install 'torch>=2.5'")
    _check_zip(path)
    try:
        # The official T2T-ViT files hold the command line of the training beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a torn or crafted file raises nearly anything
        refused = re.search(r"(?:GLOBAL|global:?|type) ([\w.]+\.[\w.]+)", str(error))
        if "eights only" in str(error) and refused:
            raise UserError(
                f"{path} refused: it holds {refused.group(1)}, and weights are only arrays, numbers and names"
            ) from None
        raise UserError(f"{path} is damaged or no PyTorch weights file ({_first_sentence(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds a {type(tree).__name__}, not a state dict")
    return _arrays(tree, torch)


def _check_zip(path):
    """Compare the checksums in the zip archive that torch.save writes, at which torch.load does not look."""
    if not zipfile.is_zipfile(path):  # the older form
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} in it is not that of its content")


def _first_sentence(error):
    return one_line(error).split(". ")[0][:200]


def _arrays(tree, torch):
    """The nested dict with NumPy arrays in place of tensors."""
    if isinstance(tree, dict):
        return {str(key): _arrays(value, torch) for key, value in tree.items()}
    if not isinstance(tree, torch.Tensor):
        return tree
    tensor = tree.detach().to_dense() if tree.is_sparse else tree.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor).numpy()


def _read_safetensors(path):
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(f"{path} is a safetensors file, which needs a package: pip install safetensors") from None
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # also of a number type that NumPy has not, such as bfloat16
        raise UserError(f"{path} is damaged or no safetensors file ({_first_sentence(error)})") from None


# --- Names ---


def _weights_of(tree):
    """(name of the entry that holds the weights or None, the arrays in it)."""
    for entry in (*_ENTRIES, None):
        inner = tree if entry is None else tree.get(entry)
        if isinstance(inner, dict):
            arrays = {name: value for name, value in inner.items() if isinstance(value, np.ndarray)}
            if arrays:
                return entry, arrays
    return None, {}


def _without_prefix(tensors):
    """Without the "module." that PyTorch's data parallelism puts before each name."""
    if all(name.startswith("module.") for name in tensors):
        return {name[len("module.") :]: value for name, value in tensors.items()}
    return tensors


def _official_names(tensors):
    """({official name: array}, which program's names they had)."""
    if any(name.startswith("patch_embed.attn1.") for name in tensors):
        return {_from_paddlevit(name): value for name, value in tensors.items()}, "PaddleViT T2T-ViT"
    pools = sorted({match.group(1) for name in tensors if (match := _TIMM_POOL.match(name))})
    if pools:
        # Old timm counts a pool with the stage before it (from 0), new timm with the one after it (from 1).
        names = {name: _TIMM_POOL.sub(lambda m: f"pools.{pools.index(m.group(1))}.", name) for name in tensors}
        return {names[name]: value for name, value in tensors.items()}, "timm PiT"
    for start, program in (("tokens_to_token.", "T2T-ViT, official names"), ("transformers.", "PiT, official names")):
        if any(name.startswith(start) for name in tensors):
            return tensors, program
    return tensors, ""


_TIMM_POOL = re.compile(r"transformers\.(\d)\.pool\.")
_PADDLEVIT = (
    (r"^patch_embed\.attn(\d)\.", r"tokens_to_token.attention\1."),
    (r"^patch_embed\.proj\.", "tokens_to_token.project."),
)


def _from_paddlevit(name):
    for pattern, replacement in _PADDLEVIT:
        name = re.sub(pattern, replacement, name)
    return name


# --- Layout ---


def linear_weights(model):
    """Names of the 2-D weights whose layouts differ: Paddle's are [in, out], PyTorch's [out, in]."""
    layers = model.named_sublayers()
    return [f"{name}.weight" for name, layer in layers if isinstance(layer, paddle.nn.Linear)]


def in_paddle_layout(weights, model):
    """Tensors and extra ones of a file as Paddle stores them, and which layout the file has: "PyTorch" or "Paddle".

    The file's own non-square Linear weights decide, whatever program wrote it: their shapes are those of the model's
    weights, or those transposed. Only where none says anything does the kind of the file decide.

    Raises UserError naming weights that contradict each other.
    """
    own, names = model.state_dict(), linear_weights(model)
    votes = {True: [], False: []}  # PyTorch's layout: names
    for name in names:
        shape, expected = list(np.shape(weights.tensors.get(name))), list(own[name].shape)
        if expected[0] != expected[1] and shape in (expected, expected[::-1]):
            votes[shape != expected].append(name)
    if votes[True] and votes[False]:
        raise UserError(
            f"{weights.path} mixes two layouts: {votes[True][0]} is transposed ([out, in]) but {votes[False][0]} is not"
        )
    is_torch = bool(votes[True]) if votes[True] or votes[False] else weights.is_torch
    return transposed(weights.tensors, names, is_torch), transposed(weights.extra, EXTRA, is_torch), is_torch


def transposed(tensors, names, wanted=True):
    """`tensors` with the 2-D ones among `names` transposed, if `wanted`."""
    return {
        name: np.ascontiguousarray(value.T) if wanted and name in names and value.ndim == 2 else value
        for name, value in tensors.items()
    }


def write_torch(path, model, extra):
    """Write the weights of `model`, and `extra` tensors, as the official code of its family reads them.

    Raises UserError without PyTorch.
    """
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch writes its files: pip install torch (its CPU build will do)") from None
    tensors = transposed({name: tensor.numpy() for name, tensor in model.state_dict().items()}, linear_weights(model))
    tensors.update(transposed(extra, EXTRA))
    tree = {name: torch.tensor(value) for name, value in tensors.items()}
    if any(name.startswith("tokens_to_token.") for name in tree):
        tree = {"state_dict": tree, "state_dict_ema": tree}  # main.py and transfer_learning.py take either
    with atomic_path(path) as temporary:
        torch.save(tree, temporary)
