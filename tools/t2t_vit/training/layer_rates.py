"""Learning rates that differ by layer: a backbone that learns slower than the head, and layer-wise decay."""

from t2t_vit.models.layers import in_head
from t2t_vit.training.schedule import learning_rate


class LayerRates:
    """Learning rate of each trained parameter, as a multiple of BASE_LR's.

    The head follows BASE_LR's cosine, all else BACKBONE_LR's, which ends at the same MIN_LR: T2T-ViT's
    transfer_learning.py has a CosineAnnealingLR over groups of 0.01 lr and lr. Either is times
    LAYER_DECAY ** (layers above the parameter's), as in ELECTRA (Clark et al., 2020, appendix B) and BEiT.

    Args:
        model: has `layer_index(name)`, the place of a parameter from the input to the output.
        train: the TRAIN section of the config.
    """

    def __init__(self, model, train):
        named = dict(model.named_parameters())
        self.train = train
        self.trained = {name: parameter for name, parameter in named.items() if not parameter.stop_gradient}
        self.layers = {name: model.layer_index(name) for name in self.trained}
        last = max(map(model.layer_index, named))
        self.decays = {name: train.LAYER_DECAY ** (last - layer) for name, layer in self.layers.items()}

    def factors(self, epoch):
        """{name: learning rate in an epoch (from 0) / that of BASE_LR}."""
        train = self.train
        head = learning_rate(epoch, train)
        # With MIN_LR or WARMUP_LR 0.0 both may be zero, but not one alone.
        backbone = learning_rate(epoch, train, train.BACKBONE_LR) / head if train.BACKBONE_LR and head else 1.0
        return {name: decay * (1.0 if in_head(name) else backbone) for name, decay in self.decays.items()}

    def kind(self, name):
        """Equal for parameters that have the same factor in every epoch; can be sorted."""
        return self.decays[name], bool(self.train.BACKBONE_LR) and in_head(name)

    def summary(self, epochs):
        """The rates in some epochs (from 0), and how they differ by layer, in one line."""
        train = self.train

        def over_epochs(peak):
            return ", ".join(f"{learning_rate(epoch, train, peak):.6g} in epoch {epoch + 1}" for epoch in epochs)

        parts = [over_epochs(train.BASE_LR)]
        if train.BACKBONE_LR:
            parts.append(f"backbone {over_epochs(train.BACKBONE_LR)}")
        if train.LAYER_DECAY < 1:
            low, high = (pick(self.layers, key=self.layers.get) for pick in (min, max))
            ends = " to ".join(f"{self.decays[name]:.3g} x in layer {self.layers[name]}" for name in (low, high))
            parts.append(f"layer decay {train.LAYER_DECAY:g}: {ends}")
        return "; ".join(parts)
