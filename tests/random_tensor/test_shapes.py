"""Small helpers for shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_silent.random_tensor.shapes import broadcast_shapes, compact

VIEWS = {
    "new dim": lambda q: q.expand(3, 4),
    "part, new dim": lambda q: q[:2].expand(3, 2),
    "dim of one": lambda q: q.view(4, 1).expand(4, 5),
    "new dim of one": lambda q: q.expand(1, 4),
    "matrix": lambda q: q.reshape(2, 2).expand(3, 2, 2),
    "transposed": lambda q: q.reshape(2, 2).t().expand(3, 2, 2),
    "transposed alone": lambda q: q.view(2, 2).t(),
    "detached": lambda q: q.detach().expand(3, 4),
    "one element": lambda q: q[1:2].expand(3),
    "every other": lambda q: q[::2].expand(2, 2),
    "flipped": lambda q: q.flip(0).expand(3, 4),
    "scalar": lambda q: q.sum().expand(3, 2),
    "as it is": lambda q: q,
    "real part": lambda q: torch.complex(q, q).real.expand(3, 4),
}


@pytest.mark.parametrize("name", VIEWS)
def test_compact_is_the_tensor_without_its_repetitions(name):
    """Values, gradients, and no dim left along which elements merely repeat."""
    p = torch.randn(4, requires_grad=True)
    tensor: Tensor = VIEWS[name](p.exp())
    small = compact(tensor)
    assert torch.equal(small.expand(tensor.shape), tensor)
    assert all(stride != 0 or size == 1 for size, stride in zip(small.shape, small.stride()))
    assert small.requires_grad == tensor.requires_grad
    if tensor.requires_grad:
        weight = torch.randn(tensor.shape)
        gradients = [
            torch.autograd.grad((t * weight).sum(), p, retain_graph=True)[0]
            for t in (tensor, small)
        ]
        torch.testing.assert_close(*gradients)


def test_broadcast_shapes_is_torchs():
    for shapes in ([(3, 1), (4,)], [(), (2, 1)], [(0, 1), (1, 3)], [(2, 3), (2, 3)]):
        assert broadcast_shapes(*shapes) == torch.broadcast_shapes(*shapes)
    with pytest.raises(RuntimeError, match="broadcast"):
        broadcast_shapes((2, 3), (2, 4))
