"""The pointwise form: sums of products of powers, exponentials and functions of affine tensors.

A :class:`Product` is ``coefficient * prod(powers) * exp(exponent) * prod(functions)``, element by
element; all it holds is right-aligned to the dims of y. Where ``(u * v).sum(-1)`` or a matrix product
adds such elements up, the summed dims stand in front of y's dims as *reduced* dims, so a square of the
sum is again a sum of products. Expectation is linear: each product is somebody else's problem
(:mod:`pyro_silent.expectation.product`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.tensor import RandomTensor

MAX_PRODUCTS = 128

"""How many products a form may be multiplied out to."""


class NotPointwise(Exception):
    """A program that has no pointwise form; the argument says why, or is empty.

    :ivar operation: the operation that has no place in the form, where it is known.
    :ivar location: the user's line that called it.
    """

    operation: str | None = None
    location: str | None = None


class Function:
    """An elementwise torch function kept whole: it is evaluated at nodes.

    :ivar args: a :class:`Sum` where random, anything else as the user gave it.
    """

    __slots__ = ("args", "function", "kwargs")

    def __init__(self, function: Callable, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = tuple(args)
        self.kwargs = kwargs

    def atoms(self) -> Iterator[RandomTensor]:
        """The affine tensors it is a function of."""
        for arg in self.args:
            if isinstance(arg, Sum):
                for product in arg.products:
                    yield from product.atoms()

    @property
    def num_dims(self) -> int:
        """Of its largest part."""
        return max((_num_dims(arg) for arg in (*self.args, *self.kwargs.values())), default=0)

    def map(self, move: Callable[[Tensor], Tensor]) -> Function:
        """The function after an op that only moves elements, which is done to every tensor in it."""

        def moved(arg: Any) -> Any:
            if isinstance(arg, Sum):
                return arg.map(move)
            return move(arg) if isinstance(arg, Tensor) else arg

        kwargs = {key: moved(arg) for key, arg in self.kwargs.items()}
        return Function(self.function, [moved(arg) for arg in self.args], kwargs)

    def evaluate(self, values: Callable[[RandomTensor], Tensor]) -> Tensor:
        """The function where each atom has the value given for it."""
        args = [arg.evaluate(values) if isinstance(arg, Sum) else arg for arg in self.args]
        return self.function(*args, **self.kwargs)


class Product:
    """One summand; see the module's docstring.

    :ivar coefficient: plain, a number or a tensor.
    :ivar powers: affine tensors, repeated for higher powers.
    :ivar exponent: an affine tensor, or None.
    :ivar reduced: sizes of the leading dims that are summed over.
    """

    __slots__ = ("coefficient", "exponent", "functions", "powers", "reduced")

    def __init__(
        self,
        coefficient: Tensor | float = 1.0,
        powers: tuple[Any, ...] = (),
        exponent: Any = None,
        functions: tuple[Function, ...] = (),
        reduced: tuple[int, ...] = (),
    ) -> None:
        self.coefficient = coefficient
        self.powers = powers
        self.exponent = exponent
        self.functions = functions
        self.reduced = reduced

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing random."""
        return not self.powers and self.exponent is None and not self.functions

    @property
    def is_linear(self) -> bool:
        """Whether it is a plain tensor times at most one affine one."""
        return len(self.powers) < 2 and self.exponent is None and not self.functions

    @property
    def is_exponential(self) -> bool:
        """Whether it is a plain tensor times exp(affine)."""
        return self.exponent is not None and not self.powers and not self.functions

    @property
    def num_dims(self) -> int:
        """Of its largest part, reduced dims included."""
        parts = (self.coefficient, *self.powers, self.exponent, *self.functions)
        return max(_num_dims(part) for part in parts)

    def atoms(self) -> Iterator[RandomTensor]:
        """The affine tensors it is made of."""
        yield from self.powers
        if self.exponent is not None:
            yield self.exponent
        for function in self.functions:
            yield from function.atoms()

    def map(self, move: Callable[[Tensor], Tensor], reduced: tuple[int, ...] = ()) -> Product:
        """The product after an op that only moves elements, which is done to every tensor in it."""
        return Product(
            move(self.coefficient) if isinstance(self.coefficient, Tensor) else self.coefficient,
            tuple(move(power) for power in self.powers),
            None if self.exponent is None else move(self.exponent),
            tuple(function.map(move) for function in self.functions),
            reduced or self.reduced,
        )

    def times(self, factor: Tensor | float) -> Product:
        """The product multiplied by something plain."""
        if isinstance(factor, (int, float)) and factor == 1:
            return self
        coefficient = factor if is_one(self.coefficient) else self.coefficient * factor
        return Product(coefficient, self.powers, self.exponent, self.functions, self.reduced)

    def evaluate(self, values: Callable[[RandomTensor], Tensor]) -> Tensor | float:
        """The product where each atom has the value given for it."""
        result = self.coefficient
        for power in self.powers:
            result = values(power) if is_one(result) else result * values(power)
        for function in self.functions:
            value = function.evaluate(values)
            result = value if is_one(result) else result * value
        if self.exponent is not None:
            value = values(self.exponent).exp()
            result = value if is_one(result) else result * value
        return result


def _num_dims(part: Any) -> int:
    if isinstance(part, Tensor):
        return part.dim()
    if isinstance(part, Sum):
        return max((product.num_dims for product in part.products), default=0)
    return part.num_dims if isinstance(part, Function) else 0


def is_one(value: Tensor | float) -> bool:
    """Whether a coefficient is the number 1."""
    return not isinstance(value, Tensor) and value == 1


class Sum:
    """A pointwise form: a sum of products on one shape.

    :ivar shape: y's shape; products may be smaller and broadcast.
    """

    __slots__ = ("products", "shape")

    def __init__(self, products: Sequence[Product], shape: Sequence[int]) -> None:
        if len(products) > MAX_PRODUCTS:
            raise NotPointwise(f"it multiplies out to more than {MAX_PRODUCTS} products")
        self.products = tuple(products)
        self.shape = torch.Size(shape)

    @property
    def is_constant(self) -> bool:
        """Whether there is nothing random."""
        return all(product.is_constant for product in self.products)

    @property
    def is_linear(self) -> bool:
        """Whether it is an affine tensor written as a sum."""
        return all(product.is_linear and not product.reduced for product in self.products)

    @property
    def is_reduced(self) -> bool:
        """Whether any product is summed over dims of its own."""
        return any(product.reduced for product in self.products)

    def atoms(self) -> Iterator[RandomTensor]:
        """The affine tensors it is made of."""
        for product in self.products:
            yield from product.atoms()

    def map(self, move: Callable[[Tensor], Tensor]) -> Sum:
        """After an op that moves elements without changing what they are aligned to."""
        return moved_sum(self, move, self.shape)

    def evaluate(self, values: Callable[[RandomTensor], Tensor]) -> Tensor | float:
        """The sum where each atom has the value given for it."""
        total: Tensor | float = 0.0
        for i, product in enumerate(self.products):
            value = product.evaluate(values)
            total = value if i == 0 else total + value
        return total


class Cases(Sum):
    """What an index that is itself a latent chooses: ``sum_k [z = k] values_k``.

    A function of it is taken case by case, since one case holds at a time.

    :ivar selector: the indicators ``[z = k]``, an affine tensor of shape ``[K, *shape]``, compact.
    :ivar values: a sum on ``[K, *shape]``.
    :ivar index: the latent index, by which cases of the same choice are known.
    """

    __slots__ = ("index", "selector", "values")

    def __init__(
        self, selector: Any, values: Sum, index: RandomTensor, shape: Sequence[int]
    ) -> None:
        if values.is_reduced:
            raise NotPointwise("a random index chooses among sums")
        count = (selector.shape[0],)
        products = [
            Product(
                product.coefficient,
                (*product.powers, selector),
                product.exponent,
                product.functions,
                count,
            )
            for product in values.products
        ]
        super().__init__(products, shape)
        self.selector = selector
        self.values = values
        self.index = index


def once(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An op that is done once to each tensor: what was one atom stays one atom."""
    done: dict[int, tuple[Tensor, Tensor]] = {}

    def moved(tensor: Tensor) -> Tensor:
        found = done.get(id(tensor))
        if found is None:
            found = done[id(tensor)] = (tensor, move(tensor))  # keeps the id taken
        return found[1]

    return moved


def moved_sum(form: Sum, move: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Sum:
    """The sum on a new shape after an op that only moves elements."""
    move = once(move)
    return Sum([product.map(move) for product in form.products], shape)


def constant(value: Any) -> Sum:
    """Something plain as a sum."""
    shape = value.shape if isinstance(value, Tensor) else ()
    return Sum([Product(value)], shape)


def atom(tensor: RandomTensor) -> Sum:
    """An affine tensor as a sum."""
    return Sum([Product(1.0, (tensor,))], tensor.shape)


def inserted(tensor: Tensor, num_dims: int, num_new: int) -> Tensor:
    """Insert dims of size 1 to the left of the last ``num_dims``, if there is anything left of them."""
    if num_new == 0 or tensor.dim() <= num_dims:
        return tensor
    for _ in range(num_new):
        tensor = tensor.unsqueeze(tensor.dim() - num_dims)
    return tensor
