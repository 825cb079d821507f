"""Mixed precision through paddle.amp, where the device supports it."""

import contextlib
import copy

import paddle

from t2t_vit.common.logger import log


class MixedPrecision:
    """Applies TRAIN.AMP and TRAIN.AMP_DTYPE. If the device does not support them, it warns and uses float32."""

    def __init__(self, train):
        reason = _why_not(train.AMP_DTYPE) if train.AMP else ""
        if reason:
            log.warning(
                "warning: TRAIN.AMP %s %s has no effect here (%s): training in float32",
                train.AMP, train.AMP_DTYPE, reason,
            )  # fmt: skip
        self.level = "" if reason else train.AMP
        self.dtype = train.AMP_DTYPE
        is_scaled = bool(self.level) and self.dtype == "float16"  # bfloat16 has the range of float32
        self.scaler = paddle.amp.GradScaler(enable=is_scaled, init_loss_scaling=65536.0)

    def __str__(self):
        return f"{self.level} {self.dtype}" if self.level else "float32"

    def live_model(self, model):
        """Return the model that computes the gradients: `model`, or for O2 a copy with 16-bit weights.

        With float16, LayerNorm stays float32. Paddle's own float32 copies of the weights (`master_weight`) are not
        used, because they omit tensors that stay float32 (2.6.2 and 3.3.1). `model` is used instead.
        """
        if self.level != "O2":
            return model
        return paddle.amp.decorate(copy.deepcopy(model), level="O2", dtype=self.dtype)

    def autocast(self):
        """Return the autocast context manager for the forward pass."""
        if not self.level:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)


def _why_not(dtype):
    device = paddle.device.get_device()
    if not device.startswith("gpu"):
        return f"the device is {device}"
    supported = paddle.amp.is_float16_supported if dtype == "float16" else paddle.amp.is_bfloat16_supported
    return "" if supported(device) else f"{device} has no {dtype}"
