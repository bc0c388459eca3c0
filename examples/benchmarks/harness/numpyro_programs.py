"""The timed programs once more, as a user of NumPyro writes them, and steps of its jitted SVI.

Importing this sets XLA to one thread, in which it is at its fastest at these sizes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoNormal
from torch import Tensor

# Work is done at once and by the calling thread, which costs a small step less.
jax.config.update("jax_cpu_enable_async_dispatch", False)

NUM_GROUPS = 20
Array = Any
Weights = dict[str, Array]
Step = Callable[[], float]


def eight_schools(standard_errors: Array, effects: Array) -> None:
    """Eight schools, non-centered."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(effects)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("estimate", dist.Normal(mean + spread * z, standard_errors), obs=effects)


def line(covariate: Array, response: Array) -> None:
    """A line with Gaussian errors of unknown scale."""
    coefficient = numpyro.sample("coefficient", dist.Normal(0.0, 1.0))
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("rows", len(response)):
        law = dist.Normal(bias + coefficient * covariate, scale)
        numpyro.sample("response", law, obs=response)


def logistic(covariates: Array, benign: Array) -> None:
    """Logistic regression."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    with numpyro.plate("covariates", covariates.shape[-1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("tumours", len(benign)):
        law = dist.Bernoulli(logits=intercept + covariates @ slope)
        numpyro.sample("benign", law, obs=benign)


def poisson(covariates: Array, groups: Array, counts: Array) -> None:
    """Poisson regression with group effects."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("covariates", covariates.shape[-1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", NUM_GROUPS):
        effect = numpyro.sample("effect", dist.Normal(0.0, spread))
    rate = jnp.exp(intercept + covariates @ slope + effect[groups])
    with numpyro.plate("people", len(counts)):
        numpyro.sample("visits", dist.Poisson(rate), obs=counts)


REGRESSIONS: dict[str, Callable[..., None]] = {
    "eight schools": eight_schools,
    "regression": line,
    "logistic regression": logistic,
    "Poisson hierarchy": poisson,
}


def _linear(weights: Weights, name: str, x: Array) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _convolution(weights: Weights, name: str, x: Array, transposed: bool = False) -> Array:
    """Kernel 4, stride 2, padding 1, as in the torch module whose weights these are."""
    kernel = weights[f"{name}.weight"]
    convolve = partial(
        jax.lax.conv_general_dilated,
        dimension_numbers=("NCHW", "IOHW" if transposed else "OIHW", "NCHW"),
    )
    if transposed:
        kernel = jnp.flip(kernel, (2, 3))
        y = convolve(x, kernel, (1, 1), [(2, 2), (2, 2)], lhs_dilation=(2, 2))
    else:
        y = convolve(x, kernel, (2, 2), [(1, 1), (1, 1)])
    return y + weights[f"{name}.bias"][:, None, None]


class VAE:
    """The VAE of :mod:`harness.models` with weights taken from it."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        arrays = {name: jnp.asarray(tensor.numpy()) for name, tensor in weights.items()}
        self.parts = {
            part: {
                name.removeprefix(f"{part}."): array
                for name, array in arrays.items()
                if name.startswith(f"{part}.")
            }
            for part in ("encoder", "decoder")
        }
        self.convolutional = "hidden.1.weight" in self.parts["encoder"]

    def encode(self, weights: Weights, x: Array) -> tuple[Array, Array]:
        """Return location and log scale of the code."""
        if self.convolutional:
            side = int(x.shape[1] ** 0.5)
            images = x.reshape(-1, 1, side, side)
            for name in ("hidden.1", "hidden.3"):
                images = jax.nn.relu(_convolution(weights, name, images))
            hidden = _linear(weights, "hidden.6", images.reshape(len(x), -1))
        else:
            hidden = _linear(weights, "hidden", x)
        hidden = jax.nn.relu(hidden)
        return _linear(weights, "loc", hidden), _linear(weights, "log_scale", hidden)

    def decode(self, weights: Weights, code: Array) -> Array:
        """Return the location of the data."""
        if not self.convolutional:
            return _linear(weights, "mean", code)
        features = _linear(weights, "mean.0", code)
        side = int((features.shape[1] / 16) ** 0.5)
        images = features.reshape(-1, 16, side, side)
        for name in ("mean.2", "mean.3"):
            images = _convolution(weights, name, images, transposed=True)
        return images.reshape(len(code), -1)

    def model(self, x: Array) -> None:
        """Draw the code from N(0, I) and the data from N(decoder(code), scale)."""
        weights = numpyro.param("decoder", self.parts["decoder"])
        dim = weights["mean.0.weight" if self.convolutional else "mean.weight"].shape[1]
        with numpyro.plate("data", len(x)):
            code = numpyro.sample("code", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
            law = dist.Normal(self.decode(weights, code), jnp.exp(weights["log_scale"]))
            numpyro.sample("x", law.to_event(1), obs=x)

    def guide(self, x: Array) -> None:
        """Draw the code from the encoder's Gaussian."""
        weights = numpyro.param("encoder", self.parts["encoder"])
        with numpyro.plate("data", len(x)):
            loc, log_scale = self.encode(weights, x)
            numpyro.sample("code", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def to_jax(args: tuple[Tensor, ...]) -> tuple[Array, ...]:
    """Return the arguments of a step as arrays."""
    return tuple(jnp.asarray(tensor.numpy()) for tensor in args)


class Training:
    """SVI of NumPyro under ``TraceMeanField_ELBO`` and Adam, from given parameters.

    :param parameters: of the guide, by NumPyro's names, constrained; or of a VAE, as a state dict.
    """

    def __init__(
        self,
        case: str,
        parameters: Mapping[str, Tensor],
        args: tuple[Tensor, ...],
        learning_rate: float,
        seed: int = 0,
    ) -> None:
        self.model: Callable[..., None]
        self.guide: Callable[..., Any]
        initial = None
        if case not in REGRESSIONS:
            vae = VAE(parameters)
            self.model, self.guide = vae.model, vae.guide
        else:
            self.model = REGRESSIONS[case]
            self.guide = AutoNormal(self.model)
            initial = {name: jnp.asarray(value.numpy()) for name, value in parameters.items()}
        optimizer = numpyro.optim.Adam(learning_rate)
        self.svi = SVI(self.model, self.guide, optimizer, TraceMeanField_ELBO())
        key = jax.random.PRNGKey(seed)
        self.state = self.svi.init(key, *to_jax(args), init_params=initial)
        self.update = jax.jit(self.svi.update)

    def step(self, batches: Iterator[tuple[Array, ...]]) -> float:
        """Take one jitted step and return its loss, as a loop in Python does."""
        self.state, loss = self.update(self.state, *next(batches))
        return float(loss)

    def steps_in_one(self, args: tuple[Tensor, ...], count: int) -> Callable[[], None]:
        """Return a call of so many steps on the same data inside one jitted loop."""
        arrays = to_jax(args)

        @jax.jit
        def many(state: Any, *data: Array) -> Any:
            return jax.lax.fori_loop(
                0, count, lambda _, inner: self.svi.update(inner, *data)[0], state
            )

        def call() -> None:
            self.state = jax.block_until_ready(many(self.state, *arrays))

        return call

    def parameters(self) -> dict[str, Any]:
        """Return the parameters as they are, constrained."""
        return {
            name: jax.tree.map(lambda leaf: jax.device_get(leaf), value)
            for name, value in self.svi.get_params(self.state).items()
        }

    def losses(self, args: tuple[Tensor, ...], count: int) -> list[float]:
        """Return as many draws of the loss at the parameters of now."""
        arrays, params = to_jax(args), self.svi.get_params(self.state)
        elbo = TraceMeanField_ELBO()

        @jax.jit
        def draw(keys: Any, params: Any, *data: Array) -> Any:
            def one(key: Any) -> Any:
                return elbo.loss(key, params, self.model, self.guide, *data)

            return jax.lax.map(one, keys)

        keys = jax.random.split(jax.random.PRNGKey(1), count)
        return list(map(float, draw(keys, params, *arrays)))
