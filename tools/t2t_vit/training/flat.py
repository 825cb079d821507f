"""Store the weights of a model contiguously in one tensor, so that one operation updates them all.

This uses private names of Paddle that are the same in 2.6.2 and 3.3.1: `_slice`, `_share_buffer_to`,
`_copy_gradient_from` and `_set_dims`. fleet/meta_parallel/sharding/group_sharded_storage.py uses them too.
"""

import itertools
import math

import paddle

_ALIGNED = 64  # elements = 256 bytes: alignment of slices, for vector loads and cuBLAS


class FlatWeights:
    """The tensors of a float32 model's state dict as slices of one tensor, `values`.

    The parameters of a group (a list of names) are contiguous. The groups come first, then all other tensors.
    """

    def __init__(self, model, groups):
        tensors = model.state_dict()
        grouped = set().union(*groups)
        self.groups, self.bounds, self.places, end = groups, [], {}, 0
        for names in [*groups, [name for name in tensors if name not in grouped]]:
            start = end
            for name in names:
                self.places[name] = end, list(tensors[name].shape)
                end += math.prod(tensors[name].shape) + _padding(tensors[name])
            self.bounds.append((start, end))
        self.values = paddle.zeros([end])
        self.adopt(model, self.values)

    @paddle.no_grad()
    def adopt(self, model, values):
        """Turn every tensor of `model` with the dtype of `values` into a slice of `values`. Its content is kept."""
        for name, tensor in model.state_dict().items():
            if tensor.dtype == values.dtype:
                view = self.view(values, name)
                paddle.assign(tensor, view)
                view._share_buffer_to(tensor)

    def view(self, flat, name, start=0):
        """Return tensor `name` as a view of `flat`, which is laid out like `values` from element `start` on."""
        place, shape = self.places[name]
        view = flat._slice(place - start, place - start + math.prod(shape))
        view.get_tensor()._set_dims(shape)
        return view

    def parameters(self):
        """Create one trainable parameter per group. It shares the memory of `values`."""
        parameters = []
        for start, end in self.bounds[: len(self.groups)]:
            zero = paddle.nn.initializer.Constant(0.0)
            parameters.append(paddle.create_parameter([end - start], "float32", default_initializer=zero))
            self.values._slice(start, end)._share_buffer_to(parameters[-1])
        return parameters


class FlatGradients:
    """Collects the gradients of a model's trained parameters, of any dtype, in one tensor like `FlatWeights`."""

    def __init__(self, model, weights):
        named = dict(model.named_parameters())
        self.parameters = [named[name] for names in weights.groups for name in names]
        self.paddings = [paddle.zeros([_padding(each)], each.dtype) for each in self.parameters]
        self.bounds = weights.bounds[: len(weights.groups)]

    @paddle.no_grad()
    def collect(self, groups):
        """Move the gradients to one float32 tensor and return it. Each of the `groups` gets its slice as gradient."""
        pieces = []
        for parameter, padding in zip(self.parameters, self.paddings):
            pieces.append(parameter.grad.reshape_([-1]))
            if padding.shape[0]:
                pieces.append(padding)
        runs = [paddle.concat(list(run)) for _, run in itertools.groupby(pieces, key=lambda piece: piece.dtype)]
        runs = [run if run.dtype == paddle.float32 else run.astype("float32") for run in runs]
        gradient = runs[0] if len(runs) == 1 else paddle.concat(runs)
        for parameter in self.parameters:
            parameter.clear_gradient(False)  # positional, because a keyword is ignored; True would fill it with zeros
        for group, (start, end) in zip(groups, self.bounds):
            group._copy_gradient_from(gradient._slice(start, end))  # shares the memory; `group.grad =` would copy
        return gradient


def _padding(tensor):
    return -math.prod(tensor.shape) % _ALIGNED
