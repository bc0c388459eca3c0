"""A random tensor never becomes a number: what needs a value raises, says where and what to do."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor
from torch.utils.checkpoint import checkpoint

from pyro_silent import (
    IntractableError,
    LeakError,
    PyroSilentError,
    RandomTensor,
    covariance,
    mean,
    random_tensor,
    variance,
)

THIS_FILE = __file__


def normal(*shape: int) -> RandomTensor:
    """Latent of this shape."""
    return random_tensor(dist.Normal(torch.zeros(shape), torch.ones(shape)), name="z")


def _if(z):
    return 1 if z[0, 0] > 0 else 0


def _if_all(z):
    assert (z > -100).all()


def _while(z):
    while z.sum() < 0:
        z = z + 1


def _sorted(z):
    return sorted([z[0, 0], z[0, 1]])


def _custom_function(z):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 3 * grad

    return Double.apply(z)


def _custom_function_with_setup(z):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return 2 * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return 3 * grad

    return Double.apply(z)


def _scripted(z):
    return torch.jit.script(_plus_one)(z)


def _plus_one(x: Tensor) -> Tensor:
    return x + 1


VALUES = {
    "if": _if,
    "assert all": _if_all,
    "while": _while,
    "bool": lambda z: bool(z[0, 0]),
    "not": lambda z: not z[0, 0],
    "and": lambda z: z[0, 0] and 1,
    "float": lambda z: float(z[0, 0]),
    "int": lambda z: int(z[0, 0]),
    "complex": lambda z: complex(z[0, 0]),
    "round": lambda z: math.floor(z[0, 0]),
    "math.exp": lambda z: math.exp(z[0, 0]),
    "index": lambda z: [1, 2, 3][z[0, 0]],
    "range": lambda z: range(z[0, 0]),
    "item": lambda z: z[0, 0].item(),
    "tolist": lambda z: z.tolist(),
    "numpy": lambda z: z.numpy(),
    "detach numpy": lambda z: z.detach().cpu().numpy(),
    "np.asarray": lambda z: np.asarray(z),
    "np.array": lambda z: np.array(z),
    "np function": lambda z: np.exp(z),
    "torch.tensor": lambda z: torch.tensor(z),
    "torch.tensor of a list": lambda z: torch.tensor([z[0, 0], z[0, 1]]),
    "torch.as_tensor of a list": lambda z: torch.as_tensor([z[0, 0], 1.0]),
    "format": lambda z: f"{z[0, 0]:.3f}",
    "max": lambda z: max(z[0, 0], z[0, 1]),
    "sorted": _sorted,
    "in": lambda z: z[0, 0] in [1.0, 2.0],
    "torch.equal": lambda z: torch.equal(z, z),
    "torch.allclose": lambda z: torch.allclose(z, torch.zeros(2, 3)),
    "is_nonzero": lambda z: torch.is_nonzero(z[0, 0]),
    "nonzero": lambda z: torch.nonzero(z),
    "unique": lambda z: torch.unique(z),
    "mask from a latent": lambda z: torch.zeros(2, 3)[z > 0],
    "own mask": lambda z: z[z > 0],
    "data_ptr": lambda z: z.data_ptr(),
    "storage": lambda z: z.untyped_storage().tolist(),
    "vmap": lambda z: torch.vmap(lambda row: row * 2)(z),
    "jit.trace": lambda z: torch.jit.trace(_plus_one, (z,)),
    "autograd.Function": _custom_function,
    "autograd.Function setup_context": _custom_function_with_setup,
    "pickle": lambda z: pickle.dumps(z),
    "dlpack": lambda z: torch.from_dlpack(z),
    "backward": lambda z: z.sum().backward(),
    "manual_seed": lambda z: torch.manual_seed(z[0, 0]),
    "deepcopy": lambda z: copy.deepcopy(z),
    "torch.save": lambda z: torch.save(z, io.BytesIO()),
    "Parameter": lambda z: torch.nn.Parameter(z),
    "clip_grad_norm_": lambda z: torch.nn.utils.clip_grad_norm_([z], 1.0),
    "checkpoint": lambda z: checkpoint(_plus_one, z, use_reentrant=True),
    "func.grad": lambda z: torch.func.grad(torch.sum)(z),
    "percent": lambda z: "%f" % z[0, 0],  # noqa: UP031
    "as_tensor dtype": lambda z: torch.as_tensor(z, dtype=torch.float64),
    "chained comparison": lambda z: 0 < z[0, 0] < 1,
    "torch.full": lambda z: torch.full((2,), z[0, 0]),
}

WRITES = {
    "setitem": lambda buf, z: buf.__setitem__(0, z[0]),
    "setitem all": lambda buf, z: buf.__setitem__(slice(None), z),
    "setitem mask": lambda buf, z: buf.__setitem__(torch.ones(2, 3, dtype=torch.bool), z[0, 0]),
    "copy_": lambda buf, z: buf.copy_(z),
    "data.copy_": lambda buf, z: buf.data.copy_(z),
    "add_": lambda buf, z: buf.add_(z),
    "sub_": lambda buf, z: buf.sub_(z),
    "mul_": lambda buf, z: buf.mul_(z),
    "div_": lambda buf, z: buf.div_(z),
    "fill_": lambda buf, z: buf.fill_(z[0, 0]),
    "masked_fill_": lambda buf, z: buf.masked_fill_(buf == 1, z[0, 0]),
    "index_add_": lambda buf, z: buf.index_add_(0, tensor([0, 1]), z),
    "index_copy_": lambda buf, z: buf.index_copy_(0, tensor([1, 0]), z),
    "index_put_": lambda buf, z: buf.index_put_((tensor([0]),), z[:1]),
    "scatter_": lambda buf, z: buf.scatter_(1, tensor([[0], [1]]), z[:, :1]),
    "scatter_add_": lambda buf, z: buf.scatter_add_(1, tensor([[0], [1]]), z[:, :1]),
    "addmm_": lambda buf, z: buf.addmm_(torch.ones(2, 2), z),
    "addcmul_": lambda buf, z: buf.addcmul_(z, torch.ones(2, 3)),
    "lerp_": lambda buf, z: buf.lerp_(z, 0.5),
    "set_": lambda buf, z: buf.set_(z),
    "view.add_": lambda buf, z: buf[0].add_(z[0]),
    "no_grad copy_": lambda buf, z: _without_grad(lambda: buf.copy_(z)),
    "add out": lambda buf, z: torch.add(z, 1, out=buf),
    "sum out": lambda buf, z: torch.sum(z, (0,), out=buf[0]),
    "cat out": lambda buf, z: torch.cat([z[:1], z[1:]], out=buf),
    "stack out": lambda buf, z: torch.stack([z[0], z[1]], out=buf),
    "matmul out": lambda buf, z: torch.matmul(torch.ones(2, 2), z, out=buf),
    "mul out": lambda buf, z: torch.mul(z, 2.0, out=buf),
    "tanh out": lambda buf, z: torch.tanh(z, out=buf),
    "max out": lambda buf, z: torch.max(z, buf, out=buf),
    "numpy buffer": lambda buf, z: buf.numpy().__setitem__(0, z[0]),
    "numpy ufunc out": lambda buf, z: np.add(buf.numpy(), z, out=buf.numpy()),
    "foreach": lambda buf, z: torch._foreach_add_([buf], [z]),
}

OWN_WRITES = {
    "setitem": lambda z: z.__setitem__(0, 1.0),
    "setitem slice": lambda z: z.__setitem__((slice(None), 1), torch.zeros(2)),
    "setitem mask": lambda z: z.__setitem__(tensor([True, False]), 0.0),
    "setitem own": lambda z: z.__setitem__(0, z[1]),
    "copy_": lambda z: z.copy_(torch.zeros(2, 3)),
    "zero_": lambda z: z.zero_(),
    "fill_": lambda z: z.fill_(1.0),
    "exp_": lambda z: z.exp_(),
    "normal_": lambda z: z.normal_(),
    "clamp_": lambda z: z.clamp_(min=0),
    "relu inplace": lambda z: F.relu(z, inplace=True),
    "resize_": lambda z: z.resize_(3, 2),
    "set_": lambda z: z.set_(torch.zeros(2, 3)),
    "data =": lambda z: setattr(z, "data", torch.zeros(2, 3)),
    "init": lambda z: torch.nn.init.normal_(z),
    "out": lambda z: torch.add(torch.zeros(2, 3), 1.0, out=z),
}


def _without_grad(function):
    with torch.no_grad():
        return function()


def raised(function, *args) -> PyroSilentError:
    """The LeakError of a call that must not have drawn anything, its message checked."""
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(LeakError) as caught:
        function(*args)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    return caught.value


def assert_helpful(error: PyroSilentError) -> None:
    """The message names this file with a line, and says what to write instead."""
    message = str(error)
    assert f"{THIS_FILE}:" in message
    line = int(message.split(f"{THIS_FILE}:")[1].split()[0].rstrip(".,:;)"))
    assert 0 < line <= len(inspect.getsource(inspect.getmodule(normal)).splitlines())
    assert 'infer={"silent": False}' in message or "out of place" in message


# torch and numpy warn about some of these calls before they reach the latent.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    z = normal(2, 3)
    assert_helpful(raised(VALUES[name], z))
    assert torch.equal(mean(z), torch.zeros(2, 3)) and torch.equal(variance(z), torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_function():
    """The interpreter reports ours as an error of its own."""
    with pytest.raises(RuntimeError, match="TorchScript"):
        _scripted(normal(2, 3))


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")
@pytest.mark.parametrize("name", ["bool", "float", "item", "np.asarray", "torch.tensor"])
def test_values_of_a_tensor_without_form(name):
    assert_helpful(raised(VALUES[name], torch.tanh(normal(2, 3))))


@pytest.mark.parametrize("name", ["if", "int", "index", "item", "nonzero", "range", "in"])
def test_values_of_an_index(name):
    z = random_tensor(dist.Categorical(torch.ones(2, 3, 4)), name="k")
    assert_helpful(raised(VALUES[name], z))


@pytest.mark.parametrize("name", WRITES)
def test_writes_into_a_plain_buffer(name):
    buffer, z = torch.full((2, 3), 7.0), normal(2, 3)
    assert_helpful(raised(WRITES[name], buffer, z))
    assert type(buffer) is Tensor
    assert torch.equal(buffer, torch.full((2, 3), 7.0))


@pytest.mark.parametrize("name", OWN_WRITES)
def test_writes_into_a_latent(name):
    z = normal(2, 3)
    assert_helpful(raised(OWN_WRITES[name], z))


@pytest.mark.parametrize("name", OWN_WRITES)
def test_a_refused_write_leaves_no_wrong_law(name):
    """After a caught error the latent is as before, or refuses to be used: never something else."""
    z = normal(2, 3)
    try:
        OWN_WRITES[name](z)
    except LeakError:
        pass
    try:
        moments = mean(z * 1), variance(z * 1)
    except LeakError:
        return
    assert torch.equal(moments[0], torch.zeros(2, 3))
    assert torch.equal(moments[1], torch.ones(2, 3))


def test_the_line_is_the_line_of_the_leak():
    z = normal(2, 3)
    line = inspect.currentframe().f_lineno + 1
    error = raised(lambda: float(z[0, 0]))
    assert f"{THIS_FILE}:{line}" in str(error)
    assert "'z'" in str(error)


def test_message_names_the_operation():
    z = normal(2, 3)
    for expected, function in (
        ("item", lambda: z.item()),
        ("numpy", lambda: z.numpy()),
        ("copy_", lambda: torch.zeros(2, 3).copy_(z)),
        ("add", lambda: torch.add(z, 1, out=torch.zeros(2, 3))),
        ("tolist", lambda: z.tolist()),
        ("setitem", lambda: torch.zeros(2, 3).__setitem__(0, z[0])),
    ):
        assert expected in str(raised(function))


# In-place operators rebind one name; whoever shares the tensor must not keep the old law unnoticed.


def _iadd(x):
    x += 1
    return x


def _isub(x):
    x -= torch.ones(3)
    return x


def _imul(x):
    x *= 2
    return x


def _itruediv(x):
    x /= 2
    return x


REBINDING = {"+=": _iadd, "-=": _isub, "*=": _imul, "/=": _itruediv}

ALIASES = {
    "same": lambda z: z,
    "row": lambda z: z[0],
    "slice": lambda z: z[:, 1:],
    "none": lambda z: z[None],
    "view": lambda z: z.view(-1),
    "transpose": lambda z: z.T,
    "permute": lambda z: z.permute(1, 0),
    "unsqueeze": lambda z: z.unsqueeze(0),
    "expand": lambda z: z.expand(2, 2, 3),
    "detach": lambda z: z.detach(),
    "split": lambda z: z.split(1)[1],
    "unbind": lambda z: z.unbind(1)[0],
    "narrow": lambda z: z.narrow(0, 0, 1),
    "view of a view": lambda z: z[0][1:],
    "contiguous": lambda z: z.contiguous(),
    "to": lambda z: z.to(torch.float32),
    "reshape": lambda z: z.reshape(-1),
}

COPIES = {
    "clone": lambda z: z.clone(),
    "times one": lambda z: z * 1,
    "gather": lambda z: z[tensor([0, 1])],
    "mask": lambda z: z[tensor([True, False])],
    "sum": lambda z: z.sum(0),
    "cat": lambda z: torch.cat([z, z]),
    "flip": lambda z: z.flip(0),
    "repeat": lambda z: z.repeat(2, 1),
}


@pytest.mark.parametrize("operator", REBINDING)
@pytest.mark.parametrize("name", ALIASES)
def test_alias_is_not_used_after_an_in_place_operator(name, operator):
    z = normal(2, 3) * 1
    alias = ALIASES[name](z)
    y = REBINDING[operator](z)
    expected = {"+=": 1.0, "-=": -1.0, "*=": 0.0, "/=": 0.0}[operator]
    assert torch.equal(mean(y), torch.full((2, 3), expected))
    for use in (
        lambda: alias + 0,
        lambda: mean(alias),
        lambda: torch.tanh(alias),
        lambda: covariance(alias.sum(), y),
        lambda: torch.stack([torch.zeros(()), alias.sum()]),
    ):
        error = raised(use)
        assert "in place" in str(error) and THIS_FILE in str(error)


@pytest.mark.parametrize("name", ALIASES)
def test_base_is_not_used_after_its_view_was_changed(name):
    z = normal(2, 3) * 1
    alias = ALIASES[name](z)
    alias *= 2
    assert torch.equal(mean(alias), torch.zeros(alias.shape))
    if alias is z:
        return
    error = raised(lambda: z + 0)
    assert "in place" in str(error)


@pytest.mark.parametrize("name", COPIES)
def test_copies_survive_an_in_place_operator(name):
    z = normal(2, 3) * 1
    other = COPIES[name](z)
    law = mean(other), variance(other)
    z += 1
    assert torch.equal(mean(z), torch.ones(2, 3))
    assert torch.equal(mean(other), law[0]) and torch.equal(variance(other), law[1])


def test_in_place_operator_in_a_called_function():
    z = normal(2, 3) * 1
    y = _iadd(z)
    assert torch.equal(mean(y), torch.ones(2, 3))
    raised(lambda: z * 1)


def test_repeated_in_place_operators():
    y = normal(2, 3) * 1
    y += 1
    y *= 3
    y -= torch.ones(3)
    y /= 2
    y += normal(2, 3)
    assert torch.equal(mean(y), torch.ones(2, 3))
    assert torch.allclose(variance(y), torch.full((2, 3), 3.25))


def test_in_place_operator_with_a_plain_left_side():
    """The name is rebound or the line refused; another name of the buffer never changes."""
    buffer = torch.zeros(2, 3)
    alias = buffer
    try:
        buffer += normal(2, 3)
    except LeakError:
        assert type(buffer) is Tensor
    else:
        assert isinstance(buffer, RandomTensor)
        assert torch.equal(variance(buffer), torch.ones(2, 3))
    assert torch.equal(alias, torch.zeros(2, 3))


def test_in_place_operator_may_not_change_the_shape():
    z = normal(3) * 1
    with pytest.raises((RuntimeError, LeakError)):
        z += torch.zeros(2, 3)


# Ops without a rule.

W = torch.arange(1.0, 10.0).reshape(3, 3) + 10 * torch.eye(3)

NO_RULE = {
    "sort": lambda z: torch.sort(z)[0],
    "topk": lambda z: z.topk(2)[0],
    "inv": lambda z: torch.linalg.inv(z),
    "det": lambda z: torch.linalg.det(z),
    "cholesky": lambda z: torch.linalg.cholesky(z),
    "softmax": lambda z: z.softmax(-1),
    "logsumexp": lambda z: torch.logsumexp(z, 0),
    "cdist": lambda z: torch.cdist(z, z),
    "max_pool1d": lambda z: F.max_pool1d(z, 2),
    "layer_norm": lambda z: F.layer_norm(z, (3,)),
    "norm": lambda z: z.norm(),
    "prod": lambda z: z.prod(0),
    "cumprod": lambda z: z.cumprod(0),
    "max": lambda z: z.max(0)[0],
    "amax": lambda z: z.amax(0),
    "median": lambda z: z.median(),
    "round": lambda z: z.round(),
    "floordiv": lambda z: z // 2,
    "remainder": lambda z: z % 2,
    "std": lambda z: z.std(0),
    "batch_norm": lambda z: F.batch_norm(z, torch.zeros(3), torch.ones(3), training=True),
    "grid_sample": lambda z: F.grid_sample(
        z[None, None], torch.zeros(1, 2, 2, 2), align_corners=False
    ),
    "long": lambda z: z.long(),
    "solve": lambda z: torch.linalg.solve(z, W),
    "div": lambda z: W / z,
    "mul": lambda z: (z[0] * z[1] * z[2]).tanh(),
    "gt": lambda z: torch.where(z > z.T, z, 0.0),
    "__eq__": lambda z: z == W,
    "reciprocal": lambda z: z.reciprocal(),
    "cross_entropy": lambda z: F.cross_entropy(z, tensor([0, 2, 1])),
    "log_softmax": lambda z: z.log_softmax(-1),
}


@pytest.mark.parametrize("name", NO_RULE)
def test_op_without_a_rule_has_no_mean_and_says_which(name):
    """Not elementwise, of too many scalars, jumping at unknown places, or without an expectation."""
    z = normal(3, 3)
    line = NO_RULE[name].__code__.co_firstlineno
    y = NO_RULE[name](z)
    plain = NO_RULE[name](W @ W.T)
    assert isinstance(y, RandomTensor)
    assert y.shape == plain.shape and y.dtype == plain.dtype
    assert name in repr(y)
    for moments in (mean, variance, lambda y: covariance(y, z.sum()), lambda y: mean(y * 2.0)):
        with pytest.raises(IntractableError) as caught:
            moments(y)
        message = str(caught.value)
        assert name in message and "z" in caught.value.latents
        place = message.split(f"{THIS_FILE}:")[1]
        assert line <= int(place.split()[0].rstrip(".,:;)")) <= line + 3
        assert name in (caught.value.operation or "")


def test_the_op_that_is_in_the_way_is_named_also_further_on():
    """Not the first that is not affine: there is a mean after that one."""
    z = normal(3, 3)
    hidden = torch.tanh(z)
    line = inspect.currentframe().f_lineno + 1
    y = (torch.sort(hidden)[0] @ W).sum(0)[1:].exp()
    with pytest.raises(IntractableError, match="sort") as caught:
        mean(y)
    assert f"{THIS_FILE}:{line}" in str(caught.value)


def test_every_output_of_an_op_without_a_rule_is_refused():
    values, indices = torch.sort(normal(3, 3))
    assert indices.dtype is torch.int64
    for output in (values, indices, W[indices]):
        with pytest.raises(IntractableError, match="sort"):
            mean(output)


def test_product_of_latents_is_not_taken_for_the_product_of_means():
    x, y = normal(2, 3) + 2.0, normal(2, 3)
    for product in (x * y, x * x, x @ y.T, torch.einsum("bi,bi->b", x, x), F.linear(x, y)):
        assert isinstance(product, RandomTensor)
        try:
            found = mean(product)
        except IntractableError:
            continue
        # Whoever gives a mean gives the right one: E[x x] = 5 per element here, E[x y] = 0.
        expected = {(2, 3): (0.0, 5.0), (2,): (15.0,), (2, 2): (0.0,)}[tuple(found.shape)]
        assert any(torch.allclose(found, torch.full(found.shape, value)) for value in expected)


def test_buffers_and_random_state_are_untouched_by_ops_without_a_rule():
    running = torch.zeros(3)
    state = torch.get_rng_state()
    F.batch_norm(normal(4, 3), running, torch.ones(3), training=True)
    for draw in (lambda z: z.bernoulli(), lambda z: torch.normal(z, 1.0), torch.multinomial):
        with pytest.raises((LeakError, TypeError)):
            draw(normal(2, 3))
    assert torch.equal(running, torch.zeros(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_public_constructor():
    with pytest.raises(TypeError, match="random_tensor"):
        RandomTensor(torch.zeros(3))


def test_unknown_law_is_refused():
    with pytest.raises(IntractableError, match="Gamma"):
        random_tensor(dist.Gamma(torch.ones(2), torch.ones(2)))


def test_assigning_a_latent_to_a_parameter_is_torchs_error():
    """Also where torch itself asks the latent for its type by name."""
    module = torch.nn.Linear(3, 2)
    with pytest.raises(TypeError, match="cannot assign"):
        module.weight = normal(2, 3)
    assert torch.typename(normal(2)).endswith("FloatTensor")


def test_shapes_are_plain_values():
    z = normal(2, 3)
    assert len(z) == 2 and z.shape[1] == 3 and z.numel() == 6 and z.stride() == (3, 1)
    assert torch.zeros_like(z).tolist() == [[0.0] * 3] * 2
    assert type(z.new_zeros(2)) is Tensor


def test_dropout_in_place_retires_its_input():
    """The mask is the program's own noise, a plain factor; the old tensor must not be used again."""
    z = normal(2, 3) + 1
    y = F.dropout(z, 0.5, training=True, inplace=True)
    factor = mean(y)  # the mask over a mean of 1
    assert set(factor.unique().tolist()) <= {0.0, 2.0}
    assert torch.equal(variance(y), factor**2)
    with pytest.raises(LeakError, match="changed in place"):
        z + 1
