"""Read weights files of all known programs and convert them to this repository's names and layout.

The names are those of the official PyTorch code. Linear weights are [in, out] as in Paddle; PyTorch stores [out, in].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.common.files import is_web_page, read_text
from t2t_vit.common.plain_yaml import load_yaml
from t2t_vit.data.dataset import some
from t2t_vit.models.layers import in_head
from t2t_vit.models.zoo import list_models
from t2t_vit.weights import checkpoint, torch_file
from t2t_vit.weights.download import remedy_for

# Entries with the weights in a larger file. The moving average comes first, as in the programs that write them.
# Training states of this repository name their average "ema", so they give the raw model.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model", "net")
EXTRA = ("aux_head.weight", "aux_head.bias")  # head of Token Labeling, not used for inference
_ANCHOR = "cls_token"  # a top-level tensor in every model here
_TIMM_POOL = re.compile(r"transformers\.(\d)\.pool\.")
_COUNTERS = ("total_ops", "total_params")  # added to every layer by thop
_LFS = b"version https://git-lfs.github.com/"


@dataclass(frozen=True)
class Weights:
    """The weights in a file, with official names but in the layout of the file."""

    path: Path
    tensors: dict  # {name: array}
    extra: dict  # tensors in EXTRA
    form: str  # for the log: "PaddleViT T2T-ViT, entry model_ema, Paddle file"
    is_torch: bool  # whether it is a PyTorch or safetensors file; Linear weights are then usually [out, in]
    variant: str = ""  # name of the model, if the file or the config of its run has it

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.tensors.items()}


def read_weights(path: str | Path) -> Weights:
    """Read a file as `Weights`. Its format is recognised by its content.

    Raises UserError if it is missing, damaged, in an unknown format, or contains something other than data.
    """
    path = Path(path)
    kind, tree = read_tree(path)
    entry, tensors = _weights_of(tree, path)
    tensors, left_out = _without_wrappers(tensors, path)
    tensors, program = _official_names(tensors)
    extra = {name: tensors.pop(name) for name in EXTRA if name in tensors}
    others = f"{some(left_out, 2)} left out" if left_out else ""
    form = ", ".join(part for part in (program, entry and f"entry {entry}", f"{kind} file", others) if part)
    return Weights(path, tensors, extra, form, kind != "Paddle", _variant_of(tree) or _variant_of_run(path))


# --- Containers ---


def read_tree(path: Path) -> tuple[str, dict]:
    """Return ("PyTorch", "safetensors" or "Paddle", the dict in the file). Raises UserError like `read_weights`."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    if not start:
        raise UserError(f"{path} is empty{remedy_for(path)}")
    if start.startswith(_LFS):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")
    if is_web_page(start):
        raise UserError(f"{path} is a web page, not weights: download the file that the page links to")
    if start.startswith((torch_file.ZIP, torch_file.LEGACY)):
        with checkpoint.naming_faults(path, "PyTorch"):
            tree = torch_file.read(path)
        if not isinstance(tree, dict):
            raise UserError(f"{path} contains a {type(tree).__name__}, not a state dict")
        return "PyTorch", tree
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        with checkpoint.naming_faults(path, "safetensors"):
            return "safetensors", _read_safetensors(path)
    return "Paddle", checkpoint.read(path)


def _read_safetensors(path):
    try:
        from safetensors import deserialize
    except ImportError:
        raise UserError(f"{path} is a safetensors file, which needs a package: pip install safetensors") from None
    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # as Paddle stores bfloat16
    types |= {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
    entries = dict(deserialize(path.read_bytes()))
    return {
        name: np.frombuffer(entry["data"], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries.items()
    }


# --- Names ---


def _weights_of(tree, path):
    """Return (name of the entry with the weights, or None for the dict itself; {name: array})."""
    held = {}
    for entry, inner in [*((str(key), value) for key, value in tree.items()), (None, tree)]:
        if isinstance(inner, dict):
            arrays = {str(name): value for name, value in inner.items() if isinstance(value, np.ndarray)}
            held |= {entry: arrays} if arrays else {}
    if any(str(key).endswith("_moment1_0") or key == "LR_Scheduler" for key in tree):
        raise UserError(f"{path} is an optimizer state (.pdopt), not weights: give the .pdparams file beside it")
    if not held:
        found = f"only {', '.join(map(str, list(tree)[:3]))}" if tree else "nothing"
        raise UserError(f"{path} contains no weights: no tensors, {found}")
    models = [entry for entry, arrays in held.items() if any(_is_anchor(name) for name in arrays)] or list(held)
    known = [entry for entry in (*_ENTRIES, None) if entry in models]
    if not known and len(models) > 1:
        raise UserError(f"{path} contains several models, {some(models)}: keep one of them")
    entry = (known or models)[0]
    return entry, held[entry]


def _is_anchor(name):
    return name.split(".")[-1] == _ANCHOR


def _without_wrappers(tensors, path):
    """Remove prefixes. Returns ({name in the model: array}, names of tensors that do not belong to the model).

    A wrapper puts one prefix before all names (module., model., backbone.). The prefix of "cls_token" is therefore the
    prefix of all tensors; only the head may lie outside. Names that wrappers insert, such as _orig_mod of
    torch.compile, begin with an underscore.
    """
    if not any(map(_is_anchor, tensors)):
        return tensors, []  # another model, such as a teacher of paddle.vision with names like _mean and _variance
    plain = {}
    for name, value in tensors.items():
        short = ".".join(part for part in name.split(".") if not part.startswith("_"))
        if short in plain:
            raise UserError(f"{path} contains {short} twice: keep one of them")
        plain[short] = value
    prefixes = sorted(name[: -len(_ANCHOR)] for name in plain if _is_anchor(name))
    if len(prefixes) > 1:
        found = some([prefix or "one without a prefix" for prefix in prefixes])
        raise UserError(f"{path} contains several models, {found}: keep one of them")
    prefix = prefixes[0]
    parts = {name[len(prefix) :]: value for name, value in plain.items() if name.startswith(prefix)}
    parts |= {name: value for name, value in plain.items() if in_head(name) and name not in parts}
    parts = {name: value for name, value in parts.items() if name.split(".")[-1] not in _COUNTERS}
    left_out = [name for name in plain if name not in parts and name[len(prefix) :] not in parts]
    return parts, left_out


def _variant_of(tree):
    """Return the variant that a PyTorch training script has saved (`arch` or `args.model`); "" if unknown."""
    args = tree.get("args")
    args = args if isinstance(args, dict) else getattr(args, "attributes", {})
    for name in (tree.get("arch"), args.get("model"), args.get("arch")):
        if isinstance(name, str):
            name = name.lower().partition(".")[0]
            name = name[: -len("_224")] if name.endswith("_224") else name  # timm's PiT
            if name in list_models():
                return name
    return ""


def _variant_of_run(path):
    """Return the variant of a run from the config beside its weights; "" if unknown or if it sets the heads."""
    beside = path.with_name("config.yaml")
    is_of_run = re.fullmatch(r"(best|latest(\.\d+)?)\.pdparams", path.name)
    if not is_of_run or not checkpoint.is_own(path) or not beside.is_file():
        return ""
    try:
        model = load_yaml(read_text(beside, 2**20), fast=True)["MODEL"]
        name, heads = model["NAME"], model["T2T"]["NUM_HEADS"] or model["PIT"]["HEADS"]
    except (ValueError, KeyError, TypeError):  # the config of another program
        return ""
    return name if name in list_models() and not heads else ""


def _official_names(tensors):
    """Rename tensors to official names. Returns ({official name: array}, program that used the old names)."""
    if any(name.startswith("patch_embed.attn1.") for name in tensors):
        names = {name: re.sub(r"^patch_embed\.attn", "tokens_to_token.attention", name) for name in tensors}
        names = {name: re.sub(r"^patch_embed\.proj", "tokens_to_token.project", new) for name, new in names.items()}
        return {names[name]: value for name, value in tensors.items()}, "PaddleViT T2T-ViT"
    pools = sorted({match.group(1) for name in tensors if (match := _TIMM_POOL.match(name))})
    if pools:
        # A pool has the number of the stage before it in old timm, of the stage after it in new timm.
        names = {name: _TIMM_POOL.sub(lambda m: f"pools.{pools.index(m.group(1))}.", name) for name in tensors}
        return {names[name]: value for name, value in tensors.items()}, "timm PiT"
    for start, program in (("tokens_to_token.", "T2T-ViT, official names"), ("transformers.", "PiT, official names")):
        if any(name.startswith(start) for name in tensors):
            return tensors, program
    return tensors, ""


# --- Layout ---


def linear_weights(model):
    """List the weights that are [in, out] in Paddle and [out, in] in PyTorch."""
    layers = model.named_sublayers()
    return [f"{name}.weight" for name, layer in layers if isinstance(layer, paddle.nn.Linear)]


def in_paddle_layout(weights, model):
    """Convert to Paddle's layout: (weights of the model, tensors in EXTRA, whether the file has PyTorch's layout).

    Linear weights that are not square show the layout of the file. If there are none, the file format decides.
    Raises UserError if the file mixes both layouts.
    """
    own, names = model.state_dict(), linear_weights(model)
    votes = {True: [], False: []}  # {is PyTorch's layout: names}
    for name in names:
        shape, expected = list(np.shape(weights.tensors.get(name))), list(own[name].shape)
        if expected[0] != expected[1] and shape in (expected, expected[::-1]):
            votes[shape != expected].append(name)
    if votes[True] and votes[False]:
        raise UserError(
            f"{weights.path} mixes two layouts: {votes[True][0]} is transposed ([out, in]) but {votes[False][0]} is not"
        )
    is_torch = bool(votes[True]) if votes[True] or votes[False] else weights.is_torch
    extra = {name: checkpoint.to_float32(value, name, weights.path) for name, value in weights.extra.items()}
    return transposed(weights.tensors, names, is_torch), transposed(extra, EXTRA, is_torch), is_torch


def transposed(tensors, names, wanted=True):
    """Return `tensors`, with the 2-D ones in `names` transposed if `wanted`."""
    return {
        name: np.ascontiguousarray(value.T) if wanted and name in names and value.ndim == 2 else value
        for name, value in tensors.items()
    }
