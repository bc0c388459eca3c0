"""Mean, variance and covariance of random tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_silent.errors import IntractableError
from pyro_silent.expectation.gaussian_moments import source_keys
from pyro_silent.expectation.product import expected_product, expected_sum
from pyro_silent.looking import is_free
from pyro_silent.random_tensor.affine import Affine, NoForm, Term
from pyro_silent.random_tensor.algebra import collapsed, multiply
from pyro_silent.random_tensor.covariance import covariance as covariance_of_forms
from pyro_silent.random_tensor.pointwise import NotPointwise, Product, Sum
from pyro_silent.random_tensor.program import RULES, Call, latents_of, map_tensors, random_tensors
from pyro_silent.random_tensor.readings import is_linear_call, read, read_all
from pyro_silent.random_tensor.source import Source
from pyro_silent.random_tensor.tensor import (
    RandomTensor,
    affine_of,
    blank_tensor,
    check_not_overwritten,
)


def refusal(
    tensor: RandomTensor, what: str, site: str | None = None, why: Exception | str = ""
) -> IntractableError:
    """The error for an expectation of a tensor that no form covers."""
    lost = tensor._lost
    latents = latents_of(tensor)
    names = ", ".join(map(repr, latents)) or "?"
    operation, location, reason = lost if lost is not None else (None, None, "it has no form")
    if getattr(why, "operation", None) is not None:
        operation, location = why.operation, why.location  # type: ignore[union-attr]
    reason = str(why) or reason
    place = "" if operation is None else f"exactness was lost in {operation} at {location} "
    return IntractableError(
        f"{what} of a function of latent {names} has no closed form here: {place}({reason}).",
        site=site,
        operation=operation,
        latents=latents,
        location=location,
    )


def _require_tensor(value: Any, what: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{what}: expected a tensor, got {type(value).__name__}")


def mean(t: Tensor) -> Tensor:
    """The expectation of each element, ``E[y]``; a plain tensor is its own mean.

    Exact where the tensor is affine in its latents, or a sum of products of powers and exponentials of
    such tensors; functions of one Gaussian scalar per element come from a table of closed forms or are
    integrated numerically, discrete scalars inside functions are enumerated. A linear function of such
    a tensor (a sum, a matrix product) has the linear function of its mean.

    Shape of ``t``; cost none for an affine tensor (it is kept up to date), a variance for exp(affine), 32
    evaluations where it is integrated.

    :raises IntractableError: if no form covers the tensor, naming the operation and the line.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import mean, random_tensor
        >>> z = random_tensor(dist.Normal(torch.zeros(()), torch.tensor(0.5)))
        >>> float(mean((2 * z - 1) ** 2)), round(float(mean(z.exp()).log()), 4)
        (2.0, 0.125)
    """
    return mean_of(t, "the mean")


def mean_of(t: Tensor, what: str) -> Tensor:
    """:func:`mean`, with what it is for in the refusal."""
    _require_tensor(t, what)
    if not isinstance(t, RandomTensor):
        return t
    check_not_overwritten(t)
    if t._form is not None:
        return t._form.offset
    try:
        value = _checked(_deep(lambda: _mean(t), t), t, what)
    except (NotPointwise, NoForm) as reason:
        raise refusal(t, what, why=reason) from None
    return value if torch.is_grad_enabled() else value.detach()


def _deep(work: Callable[[], Tensor], *tensors: RandomTensor) -> Tensor:
    """Do something that walks programs; again from their beginning if they are too deep."""
    try:
        return work()
    except RecursionError:
        pass
    try:
        for tensor in tensors:
            for node in read_all(tensor):
                if node._reading is None:
                    with suppress(NotPointwise, NoForm):
                        _mean(node)
        return work()
    except RecursionError:
        raise NotPointwise("the program is too deep") from None


def _checked(value: Tensor, tensor: RandomTensor, what: str) -> Tensor:
    """Refuse a NaN. On other devices nobody waits for the answer: the losses check their sums."""
    if is_free(value) and bool(value.isnan().any()):
        raise refusal(
            tensor,
            what,
            why="it overflows: the standard deviation inside exp() is too large for this dtype",
        )
    return value


def _mean(tensor: RandomTensor) -> Tensor:
    if tensor._form is not None:
        return tensor._form.offset
    if tensor._mean is None:
        tensor._mean = _work_out(tensor)
    return tensor._mean


def _work_out(tensor: RandomTensor) -> Tensor:
    call = tensor._call
    if call is None:
        raise NotPointwise("")
    call.check_unchanged()
    with torch.set_grad_enabled(call.grad_enabled):  # kept for whoever asks with gradients later
        if tensor._reading is None and is_linear_call(call):
            linear = _of_linear(call, tensor._index)
            if linear is not None:
                return linear
        value = expected_sum(read(tensor))
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return value.to(wide) if tensor.dtype.is_floating_point else value


_PRODUCTS = frozenset(
    ("mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", "__truediv__", "where",
     "addcmul", "addcdiv", "lerp", "masked_fill", "xlogy")
)  # fmt: skip


def _of_linear(call: Call, index: int | None) -> Tensor | None:
    """E[f(x)] = f(E[x]) by f's own rule for affine tensors; None where f is not linear in all of x."""
    random = random_tensors((call.args, call.kwargs))
    if len({id(t) for t in random}) > 1:
        module = RULES[call.function].__module__.rpartition(".")[2]
        if module in ("linear", "convolution", "fourier", "indexing"):
            return None
        if getattr(call.function, "__name__", "") in _PRODUCTS:
            return None
    if len(random) > 1 and len({id(t) for t in random}) == 1:
        if getattr(call.function, "__name__", "") in _PRODUCTS:
            return None
    if any(not tensor.dtype.is_floating_point for tensor in random):
        if getattr(call.function, "__name__", "") not in _CASTS:
            return None
    stand_ins = {id(t): _stand_in(t) for t in random}

    def replaced(value: Tensor) -> Tensor:
        return stand_ins.get(id(value), value)

    args = map_tensors(replaced, call.args)
    kwargs = map_tensors(replaced, call.kwargs)
    try:
        result = RULES[call.function](*args, **kwargs)
    except NoForm:
        return None
    if index is not None:
        result = result[index]
    return result.offset


_CASTS = frozenset(("float", "double", "half", "bfloat16", "to", "type_as"))


def _stand_in(tensor: RandomTensor) -> Tensor:
    """An affine tensor with the mean of one that is not affine: all a linear rule looks at."""
    if tensor._form is not None:
        return tensor
    offset = _mean(tensor)
    source = Source("", "gaussian", None, offset, None)  # type: ignore[arg-type]  # never drawn
    axes = tuple(k - offset.dim() if n != 1 else None for k, n in enumerate(offset.shape))
    count = sum(axis is None for axis in axes)
    coefficient = offset.new_ones((1,) * (count + offset.dim())) if count else None
    result = blank_tensor(offset.shape, tensor.dtype, offset.device)
    result._form = Affine(offset, (Term(source, axes, coefficient),))
    result._integral = not tensor.dtype.is_floating_point
    if result._integral:
        result._form.dtype = tensor.dtype
    return result


def variance(t: Tensor) -> Tensor:
    """The variance of each element, ``Var[y]``; zero for a plain tensor.

    ``sum_s sum_ii' C_si C_si' Cov(z_si, z_si')`` for an affine tensor: correlations inside and between
    readings of one latent count. For a pointwise one ``sum_ij E[P_i P_j] - E[P_i] E[P_j]`` over its
    products. Shape of ``t``; cost one product of the squared coefficients with the sources' variances.

    :raises IntractableError: if no form covers the tensor or its square.

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import random_tensor, variance
        >>> z = random_tensor(dist.OneHotCategorical(torch.tensor([0.25, 0.75])))
        >>> variance(z).tolist(), float(variance(z.sum()))
        ([0.1875, 0.1875], 0.0)
    """
    return _second_moment(t, t, "the variance")


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """The covariance of elements, ``Cov[a, b]``, on the broadcast shape.

    Zero where nothing random is shared. The covariance *matrix* of a vector y is
    ``covariance(y[:, None], y[None, :])``.

    :raises IntractableError: if no form covers a tensor or the product, or where a live and a detached
        reading of one latent meet (the gradient of their product is neither's).

    Example::

        >>> import torch, pyro.distributions as dist
        >>> from pyro_silent import covariance, random_tensor
        >>> z = random_tensor(dist.Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])))
        >>> covariance(z[:2] + z[2], z[2] - z[:2]).tolist()
        [8.0, 5.0]
    """
    return _second_moment(a, b, "the covariance")


def _second_moment(a: Tensor, b: Tensor, what: str) -> Tensor:
    _require_tensor(a, what)
    _require_tensor(b, what)
    if not isinstance(a, RandomTensor) or not isinstance(b, RandomTensor):
        shape = torch.broadcast_shapes(a.shape, b.shape)
        dtype = torch.promote_types(_dtype(a), _dtype(b))
        return torch.zeros((), dtype=dtype, device=a.device).expand(shape)
    try:
        if a._form is not None and b._form is not None:
            return covariance_of_forms(affine_of(a), affine_of(b))
        for tensor in (a, b):
            check_not_overwritten(tensor)
        with torch.enable_grad():  # what was made with gradients is put together with gradients
            value = _deep(lambda: covariance_of_sums(read(a), read(b)), a, b)
        value = value if torch.is_grad_enabled() else value.detach()
        return _checked(value, a if b._form is not None else b, what)
    except (NotPointwise, NoForm) as reason:
        lost = b if a._form is not None else a
        if lost._form is not None:
            names = latents_of(a)
            raise IntractableError(
                f"a second moment of a function of latent {', '.join(map(repr, names))} has no closed "
                f"form here: {reason}.",
                latents=names,
            ) from None
        raise refusal(lost, what, why=reason) from None


def _dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype.is_floating_point else torch.get_default_dtype()


def covariance_of_sums(a: Sum, b: Sum) -> Tensor:
    """Cov of two pointwise forms, over the pairs of products that share a latent."""
    same = a is b
    a = collapsed(a)
    b = a if same else collapsed(b)
    shape = torch.broadcast_shapes(a.shape, b.shape)
    total: Any = None
    for i, p in enumerate(a.products):
        for j, q in enumerate(b.products):
            if same and j < i:
                continue
            value = _covariance_of_products(p, q, a, b)
            if value is None:
                continue
            value = value + value if same and j != i else value
            total = value if total is None else total + value
    if total is None:
        like = next(a.atoms(), None)
        dtype, device = (None, None) if like is None else (like.dtype, like.device)
        return torch.zeros((), dtype=dtype, device=device).expand(shape)
    return total.expand(shape)


def _covariance_of_products(p: Product, q: Product, a: Sum, b: Sum) -> Tensor | None:
    keys = _keys(p)
    if keys.isdisjoint(_keys(q)):
        return None
    if p.is_linear and q.is_linear and not p.reduced and not q.reduced:
        value = covariance_of_forms(affine_of(p.powers[0]), affine_of(q.powers[0]))
        return value * p.coefficient * q.coefficient
    num_dims = max(len(a.shape), len(b.shape))
    if p is q and _independent_along(p, len(a.shape)):
        # Elements that are summed are independent: their variances add up.
        elements = Product(p.coefficient, p.powers, p.exponent, p.functions)
        shape = torch.broadcast_shapes(p.reduced + (1,) * len(a.shape), _shape_of(elements))
        one = Sum([elements], shape)
        single = expected_sum(one)
        dims = list(range(len(p.reduced)))
        return (expected_sum(multiply(one, one)) - single.square()).sum(dims)
    first, second = Sum([p], a.shape), Sum([q], b.shape)
    both = expected_sum(multiply(first, second))
    return both - expected_product(p, len(a.shape)) * expected_product(q, num_dims)


def _keys(product: Product) -> set[int]:
    keys: set[int] = set()
    for atom in product.atoms():
        keys |= source_keys(affine_of(atom))
    return keys


def _shape_of(product: Product) -> torch.Size:
    shapes = [atom.shape for atom in product.atoms()]
    if isinstance(product.coefficient, Tensor):
        shapes.append(product.coefficient.shape)
    return torch.broadcast_shapes(*shapes)


def _independent_along(product: Product, num_dims: int) -> bool:
    """Whether elements at different places of the one reduced dim share no scalar.

    So it is if all factors read one and the same axis of each source along that dim, element by element,
    and that axis is not coupled with itself.
    """
    if len(product.reduced) != 1:
        return False
    dim = -num_dims - 1
    common: dict[int, set[int]] = {}
    for atom in product.atoms():
        form = affine_of(atom)
        if form.offset.dim() != num_dims + 1 or form.shape[0] != product.reduced[0]:
            return False
        for term in form.terms:
            coupled = term.source.factor is not None
            axes = term.axes[:-1] if coupled else term.axes
            along = {k for k, axis in enumerate(axes) if isinstance(axis, int) and axis == dim}
            key = id(term.source.key)
            common[key] = common.get(key, along) & along
    return all(common.values())
