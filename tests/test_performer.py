"""The numbers of the performer: the official formula where that works, and finite values where it does not."""

import numpy as np
import paddle
import pytest

from t2t_vit.models.token_layers import TokenPerformer


def plain_performer(k, q, v, w, dtype, epsilon=1e-8):
    """The official formula, token_performer.py, in NumPy of one precision."""
    k, q, v, w = (t.astype(dtype) for t in (k, q, v, w))

    def features(x):
        half_norm = ((x * x).sum(-1, keepdims=True, dtype=dtype) / dtype(2)).astype(dtype)
        return np.exp(x @ w.T - half_norm) / dtype(np.sqrt(len(w)))

    with np.errstate(all="ignore"):
        kp, qp = features(k), features(q)  # (N, m)
        denominator = qp @ kp.sum(0, dtype=dtype)  # (N,)
        return (qp @ (kp.T @ v)) / (denominator[:, None] + dtype(epsilon))


def performer_inputs(scale, tokens=50, width=16):
    """k, q, v (N, E) and w (m, E); q and k are parallel to rows of w, where the features are largest."""
    rng = np.random.default_rng(7)
    layer = TokenPerformer(width, width)
    w = layer.w.numpy()
    directions = w[rng.integers(len(w), size=(2, tokens))] / np.sqrt(len(w))  # unit rows, (2, N, E)
    k, q = scale * directions + 0.1 * rng.standard_normal((2, tokens, width))
    return layer, k.astype("float32"), q.astype("float32"), rng.standard_normal((tokens, width)).astype("float32"), w


def attend(layer, k, q, v):
    return layer.attend(*(paddle.to_tensor(t[None]) for t in (k, q, v)))[0].numpy()


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_performer_is_the_official_formula_on_normal_inputs(scale):
    layer, k, q, v, w = performer_inputs(scale)
    exact = plain_performer(k, q, v, w, np.float64)
    assert np.abs(plain_performer(k, q, v, w, np.float32) - exact).max() < 1e-4
    assert np.abs(attend(layer, k, q, v) - exact).max() < 1e-5


def test_performer_works_where_the_plain_form_fails_in_float16():
    # w scaled so that w.x - |x|^2/2 reaches 15: e^15 is beyond float16's 65504.
    layer, *inputs, w = performer_inputs(5.5, width=64)
    inputs = [array.astype("float16") for array in inputs]
    assert not np.isfinite(plain_performer(*inputs, w, np.float16)).all()
    exact = plain_performer(*inputs, w, np.float64)
    y = layer.attend(*(paddle.to_tensor(array[None]) for array in inputs))
    assert y.dtype == paddle.float16
    # Only the result is rounded to float16, by up to 2^-11 of it.
    assert np.abs(y[0].numpy() - exact).max() < 6e-4 * np.abs(exact).max()


def test_performer_works_where_the_plain_form_underflows():
    # |x|^2 / 2 = 200: the plain features are 0 in float32, and without its epsilon the plain form is 0 / 0.
    layer, k, q, v, w = performer_inputs(20.0)
    assert not np.isfinite(plain_performer(k, q, v, w, np.float32, epsilon=0)).all()
    exact = plain_performer(k, q, v, w, np.float64)
    assert np.abs(attend(layer, k, q, v) - exact).max() < 1e-5
    layer.EPSILON = 1e-300  # practically zero, to test the convex combination itself
    exact = plain_performer(k, q, v, w, np.float64, epsilon=0)
    assert np.abs(exact).max() > 0.1
    assert np.abs(attend(layer, k, q, v) - exact).max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-3, 30.0, 3e4])
def test_performer_and_its_gradients_are_finite_at_any_magnitude(dtype, scale):
    layer, k, q, v, _ = performer_inputs(1.0)
    inputs = [paddle.to_tensor(np.clip(scale * t, -6e4, 6e4)[None]).astype(dtype) for t in (k, q, v)]
    for tensor in inputs:
        tensor.stop_gradient = False
    y = layer.attend(*inputs)
    y.astype("float32").sum().backward()
    for tensor in (y, *(t.grad for t in inputs)):
        assert np.isfinite(tensor.astype("float32").numpy()).all()
