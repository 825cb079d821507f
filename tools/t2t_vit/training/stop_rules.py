"""Rules that end a run: too many bad steps in a row, too many unreadable images."""

import paddle

from t2t_vit.common.errors import UserError
from t2t_vit.data.dataset import most_skipped


class BadSteps:
    """Counts, on the device, consecutive steps with a loss or gradient that is not finite.

    Args:
        most: TRAIN.MAX_BAD_STEPS.
    """

    def __init__(self, most):
        self.most = most
        self.streak = self.longest = paddle.zeros([])  # now; longest since the last check

    @paddle.no_grad()
    def add(self, ok):
        """Count a step, with `ok` as in `StepResult`."""
        self.streak = paddle.where(ok, paddle.zeros([]), self.streak + 1)
        self.longest = paddle.maximum(self.longest, self.streak)

    def check(self, epoch, step):
        """Raise UserError after too many bad steps in a row. Waits for the device.

        Args:
            epoch: from 1.
            step: from 1.
        """
        longest, self.longest = int(self.longest.item()), self.streak
        if longest >= self.most:
            raise UserError(
                f"the loss or its gradient was not finite in {longest} steps in a row (TRAIN.MAX_BAD_STEPS), up to "
                f"epoch {epoch}, step {step}; a lower TRAIN.BASE_LR or TRAIN.CLIP_NORM 1.0 may help"
            )

    def load_state(self, streak, longest):
        """Restore both counts."""
        self.streak, self.longest = paddle.to_tensor(streak), paddle.to_tensor(longest)


def check_skipped(skipped, images, train_log):
    """Raise UserError if DATA.ON_ERROR skip has replaced too many images of an epoch; call it in all processes.

    Args:
        skipped: images replaced so far.
        images: of the epoch.
        train_log: `TrainLog`, which gets the reasons.
    """
    if skipped > most_skipped(images):
        train_log.gather_skipped()
        raise UserError(
            f"{skipped} images could not be read, more than {most_skipped(images)} of the {images} of an epoch "
            "(DATA.ON_ERROR skip); `python tools/check_data.py` lists them all"
        )
