"""Reading a random tensor's program as a pointwise form, with the rewrites torch's formulas need.

The affine form is kept up to date while the program runs; this one is worked out when an expectation
is first asked of a tensor that is not affine. Each torch function has its reading in a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_silent.random_tensor.affine import Affine, NoForm
from pyro_silent.random_tensor.outputs import ARITHMETIC
from pyro_silent.random_tensor.pointwise import (
    Cases,
    Function,
    NotPointwise,
    Product,
    Sum,
    affine_tensor,
    atom,
    collapsed,
    constant,
    inserted,
    moved_sum,
    multiply,
    plus,
    summed,
    times_plain,
    widened,
)
from pyro_silent.random_tensor.program import RULES, Call, operation_name, random_tensors
from pyro_silent.random_tensor.rules.indexing import normalized
from pyro_silent.random_tensor.rules.sums import normalized_dims
from pyro_silent.random_tensor.rules.table import functions
from pyro_silent.random_tensor.shapes import broadcast_shapes
from pyro_silent.random_tensor.tensor import RandomTensor, affine_of, blank_tensor, lazy, storage_of

READINGS: dict[Callable, Callable[..., Sum]] = {}

"""torch function -> its reading, which takes the function's arguments."""

MOVES: set[Callable] = set()

"""torch functions that only move, repeat or drop elements of one tensor: they go on to the atoms."""


def read(value: Any) -> Sum:
    """The pointwise form of a tensor; a plain one is a constant.

    :raises NotPointwise: if the program cannot be read so.
    """
    if type(value) is not RandomTensor:
        return constant(value)
    if value._reading is None:
        value._reading = _read_call(value) if value._form is None else atom(_as_it_was(value))
    return value._reading


def _as_it_was(tensor: RandomTensor) -> RandomTensor:
    """An affine operand; a copy where the name was rebound since, which is no concern of this call."""
    if storage_of(tensor)._written is None:
        return tensor
    copied = blank_tensor(tensor.shape, tensor.dtype, tensor.device)
    copied._form, copied._call, copied._index = tensor._form, tensor._call, tensor._index
    copied._source, copied._integral = tensor._source, tensor._integral
    return copied


def read_all(tensor: RandomTensor) -> list[RandomTensor]:
    """Read a deep program from its beginning, so that no reading has far to go; its tensors in order."""
    order: list[RandomTensor] = []
    seen: set[int] = set()
    stack: list[tuple[RandomTensor, bool]] = [(tensor, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if id(node) in seen or node._form is not None or node._call is None:
            continue
        seen.add(id(node))
        stack.append((node, True))
        stack.extend((t, False) for t in random_tensors((node._call.args, node._call.kwargs)))
    for node in order:
        try:
            read(node)
        except NotPointwise:
            continue
    return order


def _read_call(tensor: RandomTensor) -> Sum:
    call = tensor._call
    if call is None:
        raise NotPointwise("")
    call.check_unchanged()
    try:
        with torch.set_grad_enabled(call.grad_enabled and torch.is_grad_enabled()):
            form = _form_of(call, tensor)
    except NotPointwise as reason:
        if reason.operation is None:
            reason.operation, reason.location = operation_name(call.function), call.location
        raise
    return form if call.grad_enabled else form.map(Tensor.detach)


def _form_of(call: Call, tensor: RandomTensor) -> Sum:
    reading = READINGS.get(call.function)
    if reading is not None:
        return reading(*call.args, **call.kwargs)
    if call.function in MOVES:
        return _moved(call, tensor)
    if isinstance(call.function, Elementwise):
        return _elementwise(call.function.read, call.args, call.kwargs)
    raise NotPointwise(f"{operation_name(call.function)} has no pointwise form")


def _moved(call: Call, tensor: RandomTensor) -> Sum:
    """An op that only moves elements is done to every tensor in the form of its argument."""
    index = tensor._index
    random = random_tensors((call.args, call.kwargs))
    if len(random) != 1 or call.args[0] is not random[0]:
        raise NotPointwise("")
    form = read(random[0])
    if form.is_reduced:
        raise NotPointwise("elements of a sum are moved")
    rest, kwargs = call.args[1:], call.kwargs

    def move(piece: Tensor) -> Tensor:
        moved = call.function(piece.expand(form.shape), *rest, **kwargs)
        return moved if index is None else moved[index]

    return moved_sum(form, move, tensor.shape)


class Elementwise:
    """A Python function of tensors, element by element, as one torch function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", "elementwise")

    def __call__(self, *args: Any) -> Tensor:
        """The function of plain tensors."""
        return self.function(*args)

    def read(self, *forms: Any) -> Sum:
        """The function kept whole."""
        return function_of(self, *forms)


def elementwise(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """A Python function of plain tensors, applied element by element to random ones.

    Its expectation is found by quadrature or enumeration, whatever the function does inside.

    :param function: works on tensors with any number of leading dims, as torch's pointwise functions do.
    """
    if not random_tensors(args):
        return function(*args)
    return lazy(Elementwise(function), args, {}, "")


# Elementwise readings. They take sums and plain values; cases are taken one by one.


def _elementwise(handler: Callable[..., Sum], args: tuple, kwargs: dict[str, Any]) -> Sum:
    forms = [read(arg) if type(arg) is RandomTensor else arg for arg in args]
    chosen = next((form for form in forms if isinstance(form, Cases)), None)
    if chosen is None:
        return handler(*forms, **kwargs)
    if any(isinstance(f, Cases) and f.index is not chosen.index for f in forms):
        return handler(*(_plain_sum(form) for form in forms), **kwargs)
    shape = broadcast_shapes(*(f.shape for f in forms if isinstance(f, (Sum, Tensor))))
    num_new = len(shape) - len(chosen.shape)

    def pad(tensor: Tensor) -> Tensor:
        return inserted(tensor, len(chosen.shape), num_new)

    cases = [
        Sum(form.values.map(pad).products, (form.selector.shape[0], *shape))
        if isinstance(form, Cases)
        else form
        for form in forms
    ]
    values = handler(*cases, **kwargs)
    return Cases(pad(chosen.selector), values, chosen.index, shape)


def _plain_sum(form: Any) -> Any:
    return Sum(form.products, form.shape) if isinstance(form, Cases) else form


def reading(*names: str) -> Callable[[Callable[..., Sum]], Callable[..., Sum]]:
    """Decorator: the reading of elementwise torch functions of these names."""

    def decorate(handler: Callable[..., Sum]) -> Callable[..., Sum]:
        def of_arguments(*args: Any, **kwargs: Any) -> Sum:
            return _elementwise(handler, args, kwargs)

        for function in functions(*names):
            READINGS[function] = of_arguments
        return handler

    return decorate


def as_sum(value: Any) -> Sum:
    """A reading's argument as a sum."""
    return value if isinstance(value, Sum) else constant(value)


@reading("add", "__add__", "__radd__")
def add(input: Any, other: Any, *, alpha: float = 1) -> Sum:
    """A sum."""
    return collapsed(plus(as_sum(input), times_plain(as_sum(other), alpha)))


@reading("sub", "subtract", "__sub__")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Sum:
    """A difference."""
    return _complement(collapsed(plus(as_sum(input), times_plain(as_sum(other), -alpha))))


@reading("rsub", "__rsub__")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Sum:
    """A difference, the other way round."""
    return _complement(collapsed(plus(as_sum(other), times_plain(as_sum(input), -alpha))))


def _complement(form: Sum) -> Sum:
    """1 - sigmoid(u) is sigmoid(-u), which keeps its digits."""
    if len(form.products) != 2:
        return form
    one, product = form.products
    if not one.is_constant or isinstance(one.coefficient, Tensor) or one.coefficient != 1:
        return form
    argument = _sigmoid_argument(product, -1.0)
    return form if argument is None else function_of(torch.sigmoid, times_plain(argument, -1.0))


_SIGMOID = frozenset(functions("sigmoid", "special.expit"))


def _sigmoid_argument(product: Product, coefficient: float) -> Sum | None:
    """u, where a product is ``coefficient * sigmoid(u)``."""
    if isinstance(product.coefficient, Tensor) or product.coefficient != coefficient:
        return None
    if product.powers or product.exponent is not None or len(product.functions) != 1:
        return None
    (function,) = product.functions
    return function.args[0] if function.function in _SIGMOID else None


@reading("neg", "negative", "__neg__")
def neg(input: Sum) -> Sum:
    """The negative."""
    return times_plain(input, -1.0)


@reading("positive", "__pos__", "clone", "contiguous", "alias", "resolve_conj", "resolve_neg")
def identity(input: Sum, **ignored: Any) -> Sum:
    """The same."""
    return input


@reading("mul", "multiply", "__mul__", "__rmul__")
def mul(input: Any, other: Any) -> Sum:
    """A product, multiplied out."""
    return multiply(as_sum(input), as_sum(other))


@reading("div", "divide", "true_divide", "__truediv__", "__div__")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Sum:
    """A quotient: multiplied by the reciprocal."""
    if rounding_mode is not None:
        raise NotPointwise("division is rounded")
    if not isinstance(other, Sum):
        return times_plain(input, 1.0 / other)
    return multiply(as_sum(input), power(other, -1.0))


@reading("__rdiv__", "__rtruediv__")
def rdiv(input: Sum, other: Any) -> Sum:
    """A quotient, the other way round."""
    return div(other, input)


@reading("reciprocal")
def reciprocal(input: Sum) -> Sum:
    """1 / x."""
    return power(input, -1.0)


@reading("square")
def square(input: Sum) -> Sum:
    """x * x."""
    return multiply(input, input)


@reading("sqrt")
def sqrt(input: Sum) -> Sum:
    """x ** 0.5."""
    return power(input, 0.5)


@reading("rsqrt")
def rsqrt(input: Sum) -> Sum:
    """x ** -0.5."""
    return power(input, -0.5)


_MAX_POWER = 6


@reading("pow", "__pow__", "float_power")
def power(input: Any, exponent: Any) -> Sum:
    """x ** p: multiplied out for small whole p; exp(p b) for exp(b); p may be plain of any shape."""
    if isinstance(exponent, Sum):
        base = as_sum(input)
        if base.is_constant and len(base.products) == 1:
            return exp(times_plain(exponent, _log(base.products[0].coefficient)))
        return exp(multiply(exponent, log(base)))
    input = as_sum(input)
    number = exponent
    if isinstance(number, Tensor) and number.dim() == 0 and not number.requires_grad:
        if number.device.type == "cpu":
            number = number.item()
    if isinstance(number, (int, float)):
        if number == 0:
            return constant(1.0)
        if number == 1:
            return input
        if number == int(number) and 2 <= number <= _MAX_POWER:
            result = input
            for _ in range(int(number) - 1):
                result = multiply(result, input)
            return result
    if len(input.products) != 1 or input.is_reduced:
        return function_of(torch.pow, input, number)
    (product,) = input.products
    if product.is_constant:
        return constant(product.coefficient**number)
    if number == 0.5 and len(product.powers) == 2 and product.powers[0] is product.powers[1]:
        rest = Product(product.coefficient, (), product.exponent, product.functions)
        root = power(Sum([rest], input.shape), 0.5)
        return multiply(function_of(torch.abs, atom(product.powers[0])), root)
    if product.exponent is None:
        if number == -1.0 and len(product.powers) + len(product.functions) == 1:
            inverse = function_of(torch.reciprocal, Sum([_bare(product)], input.shape))
            return times_plain(inverse, 1.0 / product.coefficient)
        return function_of(torch.pow, input, number)
    exponential = exp(times_plain(atom(product.exponent), number))
    if product.is_exponential:
        return multiply(constant(product.coefficient**number), exponential)
    rest = Product(product.coefficient, product.powers, None, product.functions)
    return multiply(power(Sum([rest], input.shape), number), exponential)


@reading("__rpow__")
def rpow(input: Any, base: Any) -> Sum:
    """base ** x = exp(x log base)."""
    return power(base, input)


def _bare(product: Product) -> Product:
    return Product(1.0, product.powers, product.exponent, product.functions, product.reduced)


def _log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


@reading("exp")
def exp(input: Sum) -> Sum:
    """An exponential of something affine is kept as such; logarithms added to it become factors."""
    input = collapsed(as_sum(input))
    linear = Sum([p for p in input.products if p.is_linear and not p.reduced], input.shape)
    if not linear.products or input.is_reduced:
        return function_of(torch.exp, input)
    exponent: Any = affine_tensor(linear)
    if isinstance(exponent, RandomTensor):
        factor = Sum([Product(1.0, (), exponent)], input.shape)
    else:
        factor = constant(exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent))
    rest = [p for p in input.products if not p.is_linear]
    for product in rest:
        factor = multiply(factor, _exp_of_product(Sum([product], input.shape)))
    return factor


def _exp_of_product(form: Sum) -> Sum:
    (product,) = form.products
    plain = isinstance(product.coefficient, (int, float)) and product.coefficient in (1, -1)
    if plain and len(product.functions) == 1 and not product.powers and product.exponent is None:
        (function,) = product.functions
        if function.function is torch.log:
            return power(function.args[0], product.coefficient)
    return function_of(torch.exp, form)


@reading("log")
def log(input: Sum) -> Sum:
    """Of a product the sum of its logarithms: ``log c + log f + b``."""
    input = as_sum(input)
    if len(input.products) != 1 or input.is_reduced:
        return function_of(torch.log, input)
    (product,) = input.products
    if product.is_constant:
        return constant(_log(product.coefficient))
    if product.exponent is None:
        return _log_of_function(product, input)
    result = atom(product.exponent)
    if product.is_exponential:
        if isinstance(product.coefficient, Tensor) or product.coefficient != 1:
            result = plus(result, constant(_log(product.coefficient)))
    else:
        rest = Product(product.coefficient, product.powers, None, product.functions)
        result = plus(result, log(Sum([rest], input.shape)))
    return collapsed(Sum(result.products, input.shape))


_LOG_OF: dict[Callable, Callable] = {}


def _log_of_function(product: Product, form: Sum) -> Sum:
    """log of a function whose logarithm torch has as a function of its own, which cannot underflow."""
    one = not isinstance(product.coefficient, Tensor) and product.coefficient == 1
    if one and len(product.functions) == 1 and not product.powers:
        (function,) = product.functions
        stable = _LOG_OF.get(function.function)
        if stable is not None:
            return function_of_sums(stable, function.args, {}, form.shape)
    return function_of(torch.log, form)


def _register_logs() -> None:
    for names, stable in (
        (("sigmoid", "special.expit"), F.logsigmoid),
        (("special.ndtr",), torch.special.log_ndtr),
    ):
        for function in functions(*names):
            _LOG_OF[function] = stable


_register_logs()


@reading("abs", "absolute", "__abs__")
def absolute(input: Sum) -> Sum:
    """|c exp(b)| = |c| exp(b)."""
    if len(input.products) == 1 and input.products[0].is_exponential and not input.is_reduced:
        (product,) = input.products
        size: Any = abs(product.coefficient)
        return Sum([Product(size, (), product.exponent)], input.shape)
    return function_of(torch.abs, input)


@reading("clamp", "clip")
def clamp(input: Sum, min: Any = None, max: Any = None) -> Sum:
    """A probability that is clamped to the numbers next to 0 and 1, as transforms write it, is itself."""
    (product, *others) = input.products
    if not others and not isinstance(min, (Tensor, Sum)) and not isinstance(max, (Tensor, Sum)):
        if _sigmoid_argument(product, 1.0) is not None:
            dtype = next(product.atoms()).dtype
            limits = torch.finfo(dtype)
            low_enough = min is None or min <= limits.tiny
            if low_enough and (max is None or max >= 1.0 - limits.eps):
                return input
    return function_of(torch.clamp, input, min, max)


@reading("log2")
def log2(input: Sum) -> Sum:
    """log(x) / log 2."""
    return times_plain(log(input), 1.0 / math.log(2.0))


@reading("log10")
def log10(input: Sum) -> Sum:
    """log(x) / log 10."""
    return times_plain(log(input), 1.0 / math.log(10.0))


@reading("exp2")
def exp2(input: Sum) -> Sum:
    """exp(x log 2)."""
    return exp(times_plain(as_sum(input), math.log(2.0)))


@reading("expm1")
def expm1(input: Sum) -> Sum:
    """exp(x) - 1."""
    if affine_tensor(as_sum(input)) is None:
        return function_of(torch.expm1, input)
    return plus(exp(input), constant(-1.0))


@reading("log1p")
def log1p(input: Sum) -> Sum:
    """log(1 + exp(b)) is softplus(b), which does not overflow."""
    if len(input.products) == 1 and not input.is_reduced:
        (product,) = input.products
        coefficient = product.coefficient
        if product.is_exponential and not isinstance(coefficient, Tensor) and coefficient > 0:
            shifted = plus(atom(product.exponent), constant(math.log(coefficient)))
            return function_of(F.softplus, Sum(collapsed(shifted).products, input.shape))
    return function_of(torch.log1p, input)


@reading("xlogy", "special.xlogy")
def xlogy(input: Any, other: Any) -> Sum:
    """x log(y); a random y is positive almost surely."""
    if not isinstance(other, Sum):
        if isinstance(other, Tensor):
            return function_of(torch.xlogy, input, other)
        return times_plain(as_sum(input), math.log(other) if other > 0 else math.nan)
    return multiply(as_sum(input), log(other))


@reading("lerp")
def lerp(input: Any, end: Any, weight: Any) -> Sum:
    """x + w (end - x)."""
    return add(input, mul(weight, sub(end, input)))


@reading("addcmul")
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Sum:
    """x + value a b."""
    return add(input, times_plain(multiply(as_sum(tensor1), as_sum(tensor2)), value))


@reading("addcdiv")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Sum:
    """x + value a / b."""
    return add(input, times_plain(div(as_sum(tensor1), as_sum(tensor2)), value))


def _where(condition: Any, input: Any, other: Any) -> Sum:
    """A plain mask multiplies, and drops what it hides; a random one is a function like any other."""
    if isinstance(condition, Sum):
        return function_of(torch.where, condition, input, other)
    a, b = as_sum(input), as_sum(other)
    # case by case both may be plain: the rows of a table
    parts = [
        part for form in (a, b) for part in (*form.atoms(), *(p.coefficient for p in form.products))
    ]
    dtypes = [part.dtype for part in parts if isinstance(part, Tensor)]
    dtype = dtypes[0] if dtypes else torch.get_default_dtype()
    chosen, hidden = masked(a, condition, dtype), masked(b, ~condition, dtype)
    return collapsed(plus(chosen, hidden))


def masked(form: Sum, mask: Tensor, dtype: torch.dtype) -> Sum:
    """The form where the mask is True, 0 elsewhere. Atoms are hidden too: nothing there may overflow."""
    shape = broadcast_shapes(form.shape, mask.shape)
    products = []
    for product in form.products:
        if product.reduced:
            raise NotPointwise("a mask over a sum")
        coefficient = product.coefficient
        if isinstance(coefficient, Tensor):
            coefficient = torch.where(mask, coefficient, torch.zeros_like(coefficient))
        else:
            coefficient = mask.to(dtype) * coefficient
        exponent = product.exponent
        if exponent is not None:
            exponent = torch.where(mask, exponent, torch.zeros_like(exponent))
        products.append(Product(coefficient, product.powers, exponent, product.functions))
    return Sum(products, shape)


@reading("torch.where")
def where(condition: Any, input: Any, other: Any) -> Sum:
    """Choose between two."""
    return _where(condition, input, other)


@reading("Tensor.where")
def where_method(input: Any, condition: Any, other: Any) -> Sum:
    """Choose between two."""
    return _where(condition, input, other)


@reading("masked_fill")
def masked_fill(input: Any, mask: Any, value: Any) -> Sum:
    """A value where the mask is True."""
    if isinstance(mask, Sum):
        return function_of(torch.where, mask, value, input)
    return _where(~mask, input, torch.as_tensor(value))


def function_of(function: Callable, *args: Any, **kwargs: Any) -> Sum:
    """A torch function kept whole."""
    shapes = [arg.shape for arg in args if isinstance(arg, (Sum, Tensor))]
    return function_of_sums(function, args, kwargs, broadcast_shapes(*shapes))


def function_of_sums(
    function: Callable, args: Sequence[Any], kwargs: dict[str, Any], shape: Sequence[int]
) -> Sum:
    """A torch function of sums on a given shape; plain where nothing random is left."""
    args = [_settled(arg) if isinstance(arg, Sum) else arg for arg in args]
    if not any(isinstance(arg, Sum) for arg in args):
        args = [torch.as_tensor(a) if i == 0 else a for i, a in enumerate(args)]
        return constant(function(*args, **kwargs))
    return Sum([Product(1.0, (), None, (Function(function, args, kwargs),))], shape)


def _settled(form: Sum) -> Any:
    """A function's argument: affine summands added up; what is plain taken out of its sum."""
    if form.is_reduced:
        raise NotPointwise("a function of a sum over a dim is not elementwise")
    form = collapsed(form)
    if form.is_constant:
        return form.evaluate(lambda tensor: tensor)
    linear = affine_tensor(form)
    if isinstance(linear, RandomTensor):
        return Sum([Product(1.0, (linear,))], form.shape)
    return form


_WHOLE = (
    "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
    "greater", "greater_equal", "less", "less_equal", "not_equal", "logical_and", "logical_or",
    "logical_xor", "logical_not", "__and__", "__or__", "__xor__", "__invert__", "bitwise_not",
    "abs", "absolute", "__abs__", "acos", "asin", "atan", "acosh", "asinh", "atanh", "atan2", "ceil",
    "clamp", "clip", "clamp_min", "clamp_max", "cos", "cosh", "celu", "elu", "erf", "erfc", "erfinv",
    "floor", "fmax", "fmin", "frac", "gelu", "hardtanh", "hardsigmoid", "hardswish", "heaviside", "hypot",
    "leaky_relu", "lgamma", "digamma", "polygamma", "logit", "logsigmoid", "logaddexp", "logaddexp2",
    "log_sigmoid", "max", "min", "maximum", "minimum", "mish", "nan_to_num", "relu", "relu6", "remainder",
    "__mod__", "round", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "sinc", "sinh", "softplus",
    "softsign", "tan", "tanh", "tanhshrink", "threshold", "trunc", "floor_divide", "__floordiv__",
    "isfinite", "isnan", "isinf", "softshrink", "hardshrink",
    "special.bessel_j0", "special.bessel_j1", "special.digamma", "special.entr", "special.erf",
    "special.erfc", "special.erfcx", "special.erfinv", "special.expit", "special.gammaln", "special.i0",
    "special.i0e", "special.i1", "special.i1e", "special.log_ndtr", "special.logit", "special.ndtr",
    "special.ndtri", "special.psi", "special.xlog1py", "special.zeta", "i0",
    "int", "long", "bool",
)  # fmt: skip

_MOVED = (
    "permute", "transpose", "swapaxes", "swapdims", "t", "Tensor.T.__get__", "Tensor.mT.__get__",
    "movedim", "moveaxis", "view", "view_as", "reshape", "reshape_as", "flatten", "ravel",
    "unflatten", "squeeze", "select", "narrow", "flip", "fliplr", "flipud", "roll", "repeat",
    "tile", "repeat_interleave", "rot90", "diagonal", "split", "split_with_sizes", "chunk",
    "tensor_split", "unbind", "unfold", "index_select", "gather", "take", "take_along_dim",
    "masked_select", "detach", "adjoint", "Tensor.mH.__get__", "Tensor.H.__get__",
)  # fmt: skip


def _register_tables() -> None:
    for name in _WHOLE:
        for function in functions(name):
            if function in READINGS:
                continue

            def whole(
                *args: Any, inplace: bool = False, function: Any = function, **kwargs: Any
            ) -> Sum:
                if any(isinstance(value, RandomTensor) for value in kwargs.values()):
                    raise NotPointwise("an argument given by name is random")

                def handler(*forms: Any, **kwargs: Any) -> Sum:
                    return function_of(function, *forms, **kwargs)

                return _elementwise(handler, args, kwargs)

            READINGS[function] = whole
    for name in _MOVED:
        MOVES.update(function for function in functions(name) if function not in READINGS)
    for function in functions("max", "min"):
        READINGS[function] = _two_arguments(READINGS[function], function)


def _two_arguments(elementwise: Callable[..., Sum], function: Callable) -> Callable[..., Sum]:
    """``torch.max(x, y)`` is elementwise; with one tensor it is a reduction."""

    def of_two(*args: Any, **kwargs: Any) -> Sum:
        if len(args) < 2 or not isinstance(args[1], Tensor) or kwargs:
            raise NotPointwise(f"{function.__name__} over a dim is not elementwise")
        return elementwise(*args)

    return of_two


_register_tables()


def _reads(*names: str) -> Callable[[Callable[..., Sum]], Callable[..., Sum]]:
    """Decorator: the reading of functions that are not elementwise; it takes tensors as they came."""

    def decorate(handler: Callable[..., Sum]) -> Callable[..., Sum]:
        for function in functions(*names):
            READINGS[function] = handler
            MOVES.discard(function)
        return handler

    return decorate


@_reads("expand", "broadcast_to")
def expand(input: Any, *sizes: Any, **kwargs: Any) -> Sum:
    """Repeated elements."""
    form = read(input)
    if not sizes:
        sizes = tuple(kwargs.values())[:1]
    target = sizes[0] if isinstance(sizes[0], (tuple, list)) else sizes
    old = (1,) * (len(target) - len(form.shape)) + tuple(form.shape)
    shape = [n if size == -1 else size for size, n in zip(target, old)]
    return _widened(form, shape)


@_reads("expand_as")
def expand_as(input: Any, other: Tensor) -> Sum:
    """Repeated elements."""
    return expand(input, tuple(other.shape))


def _widened(form: Sum, shape: Sequence[int]) -> Sum:
    num_dims, num_new = len(form.shape), len(shape) - len(form.shape)
    if isinstance(form, Cases):
        selector = inserted(form.selector, num_dims, num_new)
        values = form.values.map(lambda tensor: inserted(tensor, num_dims, num_new))
        values = Sum(values.products, (selector.shape[0], *shape))
        return Cases(selector, values, form.index, shape)
    return widened(form, shape)


@_reads("unsqueeze")
def unsqueeze(input: Any, dim: int) -> Sum:
    """One more dim of size 1."""
    form = read(input)
    num_dims = len(form.shape)
    right = -dim - 1 if dim < 0 else num_dims - dim  # how many dims stay on its right

    def move(tensor: Tensor) -> Tensor:
        if tensor.dim() < right:
            return tensor
        return tensor.unsqueeze(tensor.dim() - right)

    shape = [*form.shape[: num_dims - right], 1, *form.shape[num_dims - right :]]
    return moved_sum(form, move, shape)


@_reads("__getitem__")
def getitem(input: Any, index: Any) -> Sum:
    """``x[index]``: by a plain index, or case by case where the index is itself a latent."""
    items = index if isinstance(index, tuple) else (index,)
    random = [item for item in items if isinstance(item, RandomTensor)]
    if not random:
        form = read(input)
        if form.is_reduced:
            raise NotPointwise("elements of a sum are picked")

        def pick(tensor: Tensor) -> Tensor:
            return tensor.expand(form.shape)[index]

        shape = torch.empty(form.shape, device="meta")[_on_meta(index)].shape
        return moved_sum(form, pick, shape)
    return _cases(input, index, random)


def _on_meta(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_on_meta(item) for item in index)
    if isinstance(index, Tensor) and index.dtype not in (torch.bool, torch.uint8):
        return (
            torch.zeros(index.shape, dtype=index.dtype, device="meta")
            if index.dim()
            else int(index)
        )
    return index


@_reads("embedding")
def embedding(input: Any, weight: Any, *args: Any, **kwargs: Any) -> Sum:
    """``table[z]``."""
    return getitem(weight, input)


@_reads("index_select")
def index_select(input: Any, dim: int, index: Any) -> Sum:
    """Positions of one dim."""
    items = [slice(None)] * input.dim()
    items[dim] = index.reshape(-1)
    return getitem(input, tuple(items))


def _cases(table: Any, index: Any, random: Sequence[RandomTensor]) -> Sum:
    """A random table read at a random index: the indicator of each case, and the table's rows."""
    if len(random) != 1:
        raise NotPointwise("a random tensor is read at two random indices")
    entries = normalized(index, table.shape)
    (where,) = [i for i, entry in enumerate(entries) if isinstance(entry, RandomTensor)]
    plain = [entry for i, entry in enumerate(entries) if i != where]
    if any(entry != slice(None) for entry in plain if not isinstance(entry, Tensor)) or any(
        isinstance(entry, Tensor) for entry in plain
    ):
        raise NotPointwise("a random tensor is read at a random index next to another index")
    z = random[0]
    count, after = table.shape[where], table.dim() - where - 1
    form = read(table)
    before = table.dim() - after - 1
    if form.is_reduced:
        raise NotPointwise("a random index chooses among sums")
    selector = F.one_hot(z, count).to(table.dtype)
    if not isinstance(selector, RandomTensor):
        raise NotPointwise("")
    selector = selector.movedim(-1, 0)
    for _ in range(before):
        selector = selector.unsqueeze(1)
    for _ in range(after):
        selector = selector.unsqueeze(-1)

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.expand(form.shape).movedim(where, 0)
        for _ in range(z.dim()):
            tensor = tensor.unsqueeze(1 + before)
        return tensor

    shape = [*table.shape[:where], *z.shape, *table.shape[where + 1 :]]
    values = moved_sum(form, move, (count, *shape))
    return Cases(selector, values, z, shape)


@_reads("sum")
def sum_(input: Any, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Sum:
    """Sums over dims: they become reduced dims."""
    given = list(dims)
    if len(given) == 2 and isinstance(given[1], bool):
        keepdim = given.pop()
    if given:
        dim = given[0] if len(given) == 1 else given
    form = read(input)
    over = normalized_dims(dim, len(form.shape))
    return summed(form, over, keepdim) if form.shape else form


@_reads("mean")
def mean(input: Any, *dims: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Sum:
    """Averages over dims."""
    total = sum_(input, *dims, dim=dim, keepdim=keepdim)
    count = math.prod(input.shape) / max(math.prod(total.shape), 1)
    return times_plain(total, 1.0 / count)


@_reads("cumsum")
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Sum:
    """Running sums: each element sums those before it."""
    form = read(input)
    if not form.shape:
        return form
    size, right = form.shape[dim], len(form.shape) - 1 - dim % len(form.shape)
    # [.., 1, size, right dims] meets the lower triangle [size, size, 1..]
    wide = moved_sum(
        form,
        lambda tensor: inserted(tensor, right + 1, 1),
        (*form.shape[: -right - 1], 1, *form.shape[-right - 1 :]),
    )
    triangle = torch.ones(size, size, dtype=input.dtype, device=input.device).tril()
    return summed(
        times_plain(wide, triangle.reshape(size, size, *[1] * right)), [-right - 1], False
    )


@_reads("matmul", "mm", "bmm", "mv", "__matmul__", "linalg.matmul")
def matmul(input: Any, other: Any) -> Sum:
    """A matrix product: products of elements, summed."""
    a, b = read(input), read(other)
    if len(b.shape) == 1:
        return summed(multiply(a, b), [-1], False)
    a = moved_sum(a, lambda tensor: tensor.unsqueeze(-1), (*a.shape, 1))
    if len(a.shape) > 2:
        # [.., n, k, 1] meets [.., 1, k, m]
        b = moved_sum(b, lambda tensor: inserted(tensor, 2, 1), (*b.shape[:-2], 1, *b.shape[-2:]))
    return summed(multiply(a, b), [-2], False)


@_reads("__rmatmul__")
def rmatmul(input: Any, other: Any) -> Sum:
    """A matrix product, the other way round."""
    return matmul(other, input)


@_reads("dot", "inner", "vdot")
def dot(input: Any, other: Any) -> Sum:
    """The inner product of two vectors."""
    if input.dim() != 1 or other.dim() != 1:
        raise NotPointwise("")
    return matmul(input, other)


@_reads("outer", "ger")
def outer(input: Any, other: Any) -> Sum:
    """All products of two vectors' elements."""
    a = read(input)
    column = moved_sum(a, lambda tensor: tensor.unsqueeze(-1), (*a.shape, 1))
    return multiply(column, read(other))


@_reads("linear")
def linear(input: Any, weight: Any, bias: Any = None) -> Sum:
    """``x W' + b``."""
    total = matmul(input, weight.t() if weight.dim() == 2 else weight)
    return total if bias is None else plus(total, read(bias))


def _cast(*args: Any, function: Callable, **kwargs: Any) -> Sum:
    """A change of dtype goes on to the atoms; numbers made of bools are a function kept whole."""
    form = read(args[0])
    target = function(torch.empty((), dtype=args[0].dtype), *args[1:], **kwargs).dtype
    if args[0].dtype.is_floating_point and target.is_floating_point:
        return form.map(lambda tensor: function(tensor, *args[1:], **kwargs))
    return function_of(function, form, *args[1:], **kwargs)


def _register_casts() -> None:
    for function in functions("float", "double", "half", "bfloat16", "to", "type_as"):

        def cast(*args: Any, function: Callable = function, **kwargs: Any) -> Sum:
            return _cast(*args, function=function, **kwargs)

        READINGS[function] = cast


_register_casts()

_JOINS = functions("cat", "concat", "concatenate", "stack")


def _join(tensors: Sequence[Any], dim: int = 0, *, function: Callable) -> Sum:
    """Forms of one pattern are joined part by part; others are told apart by masks."""
    forms = [read(tensor) for tensor in tensors]
    if any(form.is_reduced for form in forms):
        raise NotPointwise("sums are joined")
    shape = function([torch.empty(f.shape, device="meta") for f in forms], dim).shape
    products: list[Product] = []
    for i, form in enumerate(forms):
        for product in form.products:
            products.append(_placed(product, i, forms, function, dim))
    return Sum(products, shape)


def _placed(
    product: Product, i: int, forms: Sequence[Sum], function: Callable, dim: int
) -> Product:
    """The product in its place of the joined tensor; elsewhere its coefficient is 0."""
    like = next(product.atoms(), None)

    def place(tensor: Tensor, fill: float = 0.5) -> Tensor:
        # 0.5 lies inside the domain of every function that is multiplied by 0 there
        pieces: list[Tensor] = [
            torch.full(f.shape, fill, dtype=tensor.dtype, device=tensor.device) for f in forms
        ]
        pieces[i] = tensor.expand(forms[i].shape)
        return function(pieces, dim)

    coefficient = product.coefficient
    if not isinstance(coefficient, Tensor):
        coefficient = torch.as_tensor(coefficient, dtype=None if like is None else like.dtype)
    moved = product.map(place)
    return Product(place(coefficient, 0.0), moved.powers, moved.exponent, moved.functions)


def _register_joins() -> None:
    for function in _JOINS:

        def join(
            tensors: Any, dim: int = 0, *, function: Callable = function, **kwargs: Any
        ) -> Sum:
            return _join(tensors, kwargs.get("axis", dim), function=function)

        READINGS[function] = join


_register_joins()


ARITHMETIC.update(
    functions(
        "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "mul", "__mul__", "__rmul__", "div",
        "__truediv__", "__rdiv__", "__rtruediv__", "pow", "__pow__", "__rpow__", "neg", "__neg__", "exp",
        "log", "log1p", "expm1", "square", "sqrt", "rsqrt", "reciprocal", "abs", "xlogy", "softplus",
        "sigmoid", "logsigmoid", "tanh", "sin", "cos", "erf", "lgamma",
    )
)  # fmt: skip


def _log_rules() -> None:
    """A logarithm that undoes an exponential is affine again, for all that follows."""
    for name, of_sum in (("log", log), ("log2", log2), ("log10", log10)):
        for function in functions(name):

            def affine_log(
                input: RandomTensor,
                usual: Callable = RULES[function],
                of_sum: Callable[[Sum], Sum] = of_sum,
            ) -> Affine:
                if input._form is not None:
                    return usual(input)
                try:
                    tensor = affine_tensor(of_sum(read(input)))
                except NotPointwise as reason:
                    raise NoForm(str(reason)) from None
                if not isinstance(tensor, RandomTensor):
                    raise NoForm("")
                return affine_of(tensor.expand(input.shape))

            RULES[function] = affine_log


_log_rules()


def is_linear_call(call: Call) -> bool:
    """Whether the call's rule might be linear in what is random: E[f(x)] is then f(E[x])."""
    rule = RULES.get(call.function)
    if rule is None:
        return False
    return rule.__module__.rpartition(".")[2] in _LINEAR_MODULES


_LINEAR_MODULES = frozenset(
    ("arithmetic", "convolution", "fourier", "joining", "linear", "reordering", "structural",
     "indexing", "sums")
)  # fmt: skip
