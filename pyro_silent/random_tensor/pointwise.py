"""The pointwise form: sums of products of powers, exponentials and functions of affine tensors.

A :class:`Product` is ``coefficient * prod(powers) * exp(exponent) * prod(functions)``, element by
element; all it holds is right-aligned to the dims of y. Where ``(u * v).sum(-1)`` or a matrix product
adds such elements up, the summed dims stand in front of y's dims as *reduced* dims, so a square of the
sum is again a sum of products. Expectation is linear: each product is somebody else's problem
(:mod:`pyro_silent.expectation.product`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_silent.random_tensor.shapes import broadcast_shapes
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
        coefficient = factor if _is_one(self.coefficient) else self.coefficient * factor
        return Product(coefficient, self.powers, self.exponent, self.functions, self.reduced)

    def evaluate(self, values: Callable[[RandomTensor], Tensor]) -> Tensor | float:
        """The product where each atom has the value given for it."""
        result = self.coefficient
        for power in self.powers:
            result = values(power) if _is_one(result) else result * values(power)
        for function in self.functions:
            value = function.evaluate(values)
            result = value if _is_one(result) else result * value
        if self.exponent is not None:
            value = values(self.exponent).exp()
            result = value if _is_one(result) else result * value
        return result


def _num_dims(part: Any) -> int:
    if isinstance(part, Tensor):
        return part.dim()
    if isinstance(part, Sum):
        return max((product.num_dims for product in part.products), default=0)
    return part.num_dims if isinstance(part, Function) else 0


def _is_one(value: Tensor | float) -> bool:
    return not isinstance(value, Tensor) and value == 1


class Sum:
    """A pointwise form: a sum of products on one shape.

    :ivar shape: y's shape; products may be smaller and broadcast.
    :ivar dtype: of a single product's function that returns bools or integers, for casts.
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


def padded(product: Product, num_dims: int, num_new: int) -> Product:
    """The product for a y that has ``num_new`` dims more on the left."""
    if num_new == 0 or not product.reduced:
        return product
    return product.map(lambda tensor: inserted(tensor, num_dims, num_new))


def widened(form: Sum, shape: Sequence[int]) -> Sum:
    """The same sum on a larger broadcast shape."""
    num_dims, num_new = len(form.shape), len(shape) - len(form.shape)
    if num_new == 0 or not form.is_reduced:
        return Sum(form.products, shape)
    return moved_sum(form, lambda tensor: inserted(tensor, num_dims, num_new), shape)


def plus(a: Sum, b: Sum) -> Sum:
    """a + b; affine summands of equal kind are added up by :func:`collapsed`."""
    shape = broadcast_shapes(a.shape, b.shape)
    return Sum([*widened(a, shape).products, *widened(b, shape).products], shape)


def times_plain(form: Sum, factor: Tensor | float) -> Sum:
    """The sum multiplied by something plain."""
    shape = form.shape
    if isinstance(factor, Tensor):
        shape = broadcast_shapes(shape, factor.shape)
    elif factor == 0:
        return Sum([Product(0.0)], shape)
    return Sum([product.times(factor) for product in widened(form, shape).products], shape)


def multiply(a: Sum, b: Sum) -> Sum:
    """a * b, multiplied out."""
    for form, other in ((a, b), (b, a)):
        if form.is_constant and len(form.products) == 1:
            return times_plain(other, form.products[0].coefficient)
    shape = broadcast_shapes(a.shape, b.shape)
    if len(a.products) * len(b.products) > MAX_PRODUCTS:
        raise NotPointwise(f"it multiplies out to more than {MAX_PRODUCTS} products")
    a, b = widened(a, shape), widened(b, shape)
    return Sum([_product(p, q, len(shape)) for p in a.products for q in b.products], shape)


MAX_DEGREE = 8
MAX_REDUCED = 10**6
"""How many factors one product may have, and how many elements it may sum."""


def _product(p: Product, q: Product, num_dims: int) -> Product:
    if len(p.powers) + len(q.powers) > MAX_DEGREE:
        raise NotPointwise(f"a polynomial of a degree above {MAX_DEGREE}")
    if math.prod(p.reduced) * math.prod(q.reduced) > MAX_REDUCED:
        raise NotPointwise(f"a product of sums of more than {MAX_REDUCED} pairs")
    # p's reduced dims go to the left of q's
    p = padded(p, num_dims, len(q.reduced))
    exponent = p.exponent
    if q.exponent is not None:
        exponent = q.exponent if exponent is None else exponent + q.exponent
    coefficient = q.coefficient if _is_one(p.coefficient) else p.coefficient
    if not _is_one(p.coefficient) and not _is_one(q.coefficient):
        coefficient = p.coefficient * q.coefficient
    return Product(
        coefficient,
        p.powers + q.powers,
        exponent if isinstance(exponent, RandomTensor) else None,
        p.functions + q.functions,
        p.reduced + q.reduced,
    ).times(1.0 if exponent is None or isinstance(exponent, RandomTensor) else exponent.exp())


def collapsed(form: Sum) -> Sum:
    """Affine summands added up to one affine tensor; products of the same factors to one product."""
    form = _merged(form)
    linear = [p for p in form.products if p.is_linear and not p.reduced]
    if len(linear) < 2:
        return form
    total: Any = None
    for product in linear:
        value: Any = product.coefficient
        if product.powers:
            value = product.powers[0] if _is_one(value) else value * product.powers[0]
        total = value if total is None else total + value
    rest = [p for p in form.products if not p.is_linear or p.reduced]
    merged = (
        Product(1.0, (total,)) if isinstance(total, RandomTensor) else Product(coefficient=total)
    )
    return Sum([merged, *rest], form.shape)


def _merged(form: Sum) -> Sum:
    """``a e^b + c e^b = (a + c) e^b``: what cancels must not meet as two infinities."""
    if len(form.products) < 2:
        return form
    merged: dict[tuple, Product] = {}
    for product in form.products:
        key = (
            tuple(map(id, product.powers)),
            id(product.exponent),
            tuple(map(id, product.functions)),
            product.reduced,
        )
        other = merged.get(key)
        if other is not None:
            product = Product(
                other.coefficient + product.coefficient,
                product.powers,
                product.exponent,
                product.functions,
                product.reduced,
            )
        merged[key] = product
    kept = [p for p in merged.values() if not _is_zero(p.coefficient)] or [Product(0.0)]
    return Sum(kept, form.shape) if len(kept) < len(form.products) else form


def _is_zero(value: Tensor | float) -> bool:
    return not isinstance(value, Tensor) and value == 0


def affine_tensor(form: Sum) -> Tensor | float | None:
    """The affine (or plain) tensor a sum is, or None."""
    if not form.is_linear:
        return None
    form = collapsed(form)
    if len(form.products) != 1:
        return None
    (product,) = form.products
    if not product.powers:
        return product.coefficient
    (power,) = product.powers
    return power if _is_one(product.coefficient) else product.coefficient * power


def summed(form: Sum, dims: Sequence[int], keepdim: bool) -> Sum:
    """The sum over dims (negative) of y."""
    shape = form.shape
    num_dims = len(shape)
    sizes = tuple(shape[dim] for dim in dims)
    kept = [dim for dim in range(-num_dims, 0) if dim not in dims]
    order = [*dims, *kept]
    new_shape = [1 if d in dims else shape[d] for d in range(-num_dims, 0)]
    if not keepdim:
        new_shape = [shape[dim] for dim in kept]

    def move(tensor: Tensor) -> Tensor:
        for _ in range(num_dims - tensor.dim()):
            tensor = tensor.unsqueeze(0)
        num_reduced = tensor.dim() - num_dims
        tensor = tensor.permute(
            *range(num_reduced), *(num_reduced + num_dims + dim for dim in order)
        )
        if keepdim:
            for dim in sorted(d + num_dims for d in dims):
                tensor = tensor.unsqueeze(num_reduced + len(dims) + dim)
        return tensor

    moved = once(move)
    products = [product.map(moved, product.reduced + sizes) for product in form.products]
    return Sum(products, new_shape)
