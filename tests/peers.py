"""Weights files as other programs write them, with the values of `official.weight`."""

import json
from pathlib import Path

import numpy as np
import official
import paddle
import pytest

from t2t_vit.models.position import sinusoid_table

KEYS = json.loads((Path(__file__).parent / "golden/peer_keys.json").read_text())


def need_torch():
    """Return PyTorch, or skip the test."""
    return pytest.importorskip("torch", reason="PyTorch, which writes PyTorch files, is not installed")


def _official_name(name):
    for theirs, ours in (
        ("patch_embed.attn", "tokens_to_token.attention"),
        ("patch_embed.proj.", "tokens_to_token.project."),
    ):
        name = name.replace(theirs, ours)
    return name


def _is_linear(name, shape):
    return len(shape) == 2 and not name.endswith(".w")


def peer_tensors(peer, seed=0):
    """{their name: float32 array in Paddle's layout} of one of the state dicts in KEYS."""
    tensors = {}
    for name, (shape, _) in KEYS[peer].items():
        is_linear = _is_linear(name, shape)
        if name == "pos_embed" and len(shape) == 3:
            tensors[name] = sinusoid_table(*shape[1:]).numpy()
            continue
        value = official.weight(_official_name(name), shape[::-1] if is_linear else shape, seed)
        tensors[name] = np.ascontiguousarray(value.T if is_linear else value).astype("float32")
    return tensors


def official_tensors(peer, seed=0):
    """{official name: float32 array in PyTorch's layout} of the same model."""
    tensors = peer_tensors(peer, seed)
    return {
        _official_name(name): np.ascontiguousarray(value.T) if _is_linear(name, value.shape) else value
        for name, value in tensors.items()
    }


def save_paddle(path, tree):
    """Write a file as the Paddle projects do."""
    paddle.save(_map(tree, paddle.to_tensor), str(path))


def save_torch(path, tree, **options):
    """Write a file as the PyTorch projects do."""
    import torch

    torch.save(_map(tree, torch.from_numpy), path, **options)


def _map(tree, make):
    if isinstance(tree, dict):
        return {key: _map(value, make) for key, value in tree.items()}
    return make(tree) if isinstance(tree, np.ndarray) else tree
