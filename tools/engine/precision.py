"""Mixed precision through paddle.amp, where the device has it."""

import contextlib

import paddle

from engine.logger import log


class MixedPrecision:
    """What TRAIN.AMP and TRAIN.AMP_DTYPE ask for, or plain float32 with a warning where the device cannot.

    Args:
        train: the TRAIN section of the config.
    """

    def __init__(self, train):
        reason = _why_not(train.AMP_DTYPE) if train.AMP else ""
        if reason:
            log.warning(
                "warning: TRAIN.AMP %s %s does nothing here (%s): training in float32",
                train.AMP,
                train.AMP_DTYPE,
                reason,
            )
        self.level = "" if reason else train.AMP
        self.dtype = train.AMP_DTYPE
        # bfloat16 has the range of float32 and needs no loss scale.
        self.scaler = paddle.amp.GradScaler(
            enable=bool(self.level) and self.dtype == "float16", init_loss_scaling=65536.0
        )

    def __str__(self):
        return f"{self.level} {self.dtype}" if self.level else "float32"

    def decorate(self, model, optimizer):
        """Convert the weights for O2; the optimizer then keeps a float32 copy, and gradients are float32."""
        if self.level == "O2":
            paddle.amp.decorate(model, optimizer, level="O2", dtype=self.dtype, master_weight=True, master_grad=True)

    def autocast(self):
        """Context of the forward pass."""
        if not self.level:
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)


def _why_not(dtype):
    device = paddle.device.get_device()
    if not device.startswith("gpu"):
        return f"the device is {device}"
    supported = paddle.amp.is_float16_supported if dtype == "float16" else paddle.amp.is_bfloat16_supported
    return "" if supported(device) else f"{device} has no {dtype}"
