"""Factors of one product that depend on each other."""

from __future__ import annotations

from pyro_silent.random_tensor.pointwise import Function
from pyro_silent.random_tensor.tensor import RandomTensor


class Part:
    """Factors of one product that depend on each other."""

    def __init__(self) -> None:
        self.powers: list[RandomTensor] = []
        self.exponent: RandomTensor | None = None
        self.functions: list[Function] = []

    def atoms(self) -> list[RandomTensor]:
        """The affine tensors in the part, each once."""
        found = {id(power): power for power in self.powers}
        if self.exponent is not None:
            found[id(self.exponent)] = self.exponent
        for function in self.functions:
            found.update((id(atom), atom) for atom in function.atoms())
        return list(found.values())
