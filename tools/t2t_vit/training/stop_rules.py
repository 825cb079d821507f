"""Rules that stop a run: too many bad steps in a row, or too many unreadable images."""

import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.data.dataset import most_skipped


class BadSteps:
    """Counts, on the device, consecutive steps with a loss or gradient that is not finite."""

    def __init__(self, most):
        self.most = most  # TRAIN.MAX_BAD_STEPS
        self.streak = self.longest = paddle.zeros([])  # now; the longest since the last check

    @paddle.no_grad()
    def add(self, ok):
        """Count a step, with `ok` as in `StepResult`."""
        self.streak = paddle.where(ok, paddle.zeros([]), self.streak + 1)
        self.longest = paddle.maximum(self.longest, self.streak)

    def check(self, epoch, step):
        """Raise UserError after too many bad steps in a row. `epoch` and `step`, from 1, are for the message.

        Waits for the device.
        """
        longest, self.longest = int(self.longest.item()), self.streak
        if longest >= self.most:
            raise UserError(
                f"the loss or its gradient was not finite in {longest} steps in a row (TRAIN.MAX_BAD_STEPS), up to "
                f"epoch {epoch}, step {step}; a lower TRAIN.BASE_LR or TRAIN.CLIP_NORM 1.0 may help"
            )


def check_skipped(skipped, images, train_log):
    """Raise UserError if DATA.ON_ERROR skip has replaced too many images: `skipped` of the `images` of an epoch.

    Call it in all processes, because `train_log` collects their reasons.
    """
    if skipped > most_skipped(images):
        train_log.gather_skipped()
        raise UserError(
            f"{skipped} images could not be read, but DATA.ON_ERROR skip allows only {most_skipped(images)} of the "
            f"{images} in an epoch; `python tools/check_data.py` lists them all"
        )
