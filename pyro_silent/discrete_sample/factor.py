"""A factor: the one-hot code of one discrete scalar per element, and how factors are matched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Move = Callable[[Tensor, int], Tensor]


class Factor:
    """One discrete scalar per element, by its one-hot code.

    :ivar origin: the tensor that carries the gradient: a one-hot code ``[*dims, L]``, or for a binary
        scalar its 0/1 values ``[*dims]``. Dims of size 1 may stand for larger ones.
    :ivar root: the tensor of the latent it was moved from; two factors of one root that read the same
        memory in the same way are the same scalars.
    """

    __slots__ = ("_code", "binary", "origin", "root", "soft")

    def __init__(self, origin: Tensor, root: object, *, binary: bool, soft: bool) -> None:
        self.origin = origin
        self.root = root
        self.binary = binary
        self.soft = soft
        self._code: Tensor | None = None if binary else origin

    @property
    def code(self) -> Tensor:
        """The one-hot code ``[*dims, L]``."""
        if self._code is None:
            self._code = torch.stack([1 - self.origin, self.origin], -1)
        return self._code

    @property
    def trailing(self) -> int:
        """The number of dims of ``origin`` that are not dims of the value."""
        return 0 if self.binary else 1

    @property
    def num_levels(self) -> int:
        """The number of values of the scalar."""
        return 2 if self.binary else self.origin.shape[-1]

    def moved(self, move: Move) -> Factor:
        """The factor after a structural operation on its dims."""
        origin = move(self.origin, self.trailing)
        if origin is self.origin:
            return self
        return Factor(origin, self.root, binary=self.binary, soft=self.soft)

    def padded(self, num_dims: int) -> Factor:
        """The same factor with dims of size 1 in front, so that there are ``num_dims`` of them."""
        missing = num_dims - self.origin.dim() + self.trailing
        if not missing:
            return self
        padded = Factor(
            self.origin[(None,) * missing], self.root, binary=self.binary, soft=self.soft
        )
        if self._code is not None:
            padded._code = self._code[(None,) * missing]
        return padded

    def is_same(self, other: Factor) -> bool:
        """Whether two factors of as many dims are the same scalars wherever they meet."""
        a, b = self.origin, other.origin
        if a is b:
            return True
        return (
            self.root is other.root
            and self.binary is other.binary
            and a.data_ptr() == b.data_ptr()
            and _steps(a) == _steps(b)
        )

    def hard_code(self) -> Tensor:
        """The one-hot code of the most probable level, without gradient."""
        code = self.code.detach()
        if not self.soft:
            return code
        return torch.nn.functional.one_hot(code.argmax(-1), code.shape[-1]).to(code.dtype)


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """Size and stride of each dim, where a dim that repeats one element counts as size 1."""
    return [(n, s) if n != 1 and s != 0 else (1, 0) for n, s in zip(tensor.shape, tensor.stride())]


def merged(
    groups: Sequence[Sequence[Factor]],
) -> tuple[tuple[Factor, ...], list[list[int]]]:
    """The distinct factors of several groups, and where those of each group are found among them."""
    factors: list[Factor] = []
    places = []
    for group in groups:
        found = []
        for factor in group:
            for i, known in enumerate(factors):
                if known.is_same(factor):
                    if factor.origin.numel() < known.origin.numel():
                        factors[i] = factor
                    found.append(i)
                    break
            else:
                found.append(len(factors))
                factors.append(factor)
        places.append(found)
    return tuple(factors), places
