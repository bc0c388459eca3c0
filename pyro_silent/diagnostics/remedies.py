"""What to write instead of something that has to be sampled."""

from __future__ import annotations

from typing import Any

from pyro_silent.errors import IntractableError

_MIXING = (
    "amax amin cdist cumprod logcumsumexp logsumexp log_softmax max median min norm normalize prod "
    "softmax softmin sort topk var std layer_norm"
).split()
_MATRICES = (
    "cholesky cholesky_solve det eigh inv inverse logdet slogdet solve solve_triangular".split()
)

_REMEDIES = {
    **dict.fromkeys(
        _MIXING,
        "It mixes several random elements: write the term with functions of one element at a time, or "
        "accept the sample.",
    ),
    **dict.fromkeys(_MATRICES, "Keep matrices that are factorised or inverted free of latents."),
    "MultivariateNormal.log_prob": "Keep its covariance free of latents, or write independent Normals.",
    "pyro.sample": "Make the guide site's location affine in earlier latents and its spread plain.",
}

_DEFAULT = (
    "Write it with elementwise functions of tensors that are linear in the latents, give the "
    "distribution a rule by register_expected_log_prob, or accept the sample."
)


def remedy(error: IntractableError) -> str:
    """What to write instead of the operation that lost exactness."""
    operation = error.operation or ""
    name = operation.partition("(")[0]
    return _REMEDIES.get(name) or _REMEDIES.get(name.rpartition(".")[2]) or _DEFAULT


def remedy_of_law(law: Any) -> str:
    """What to write instead of a guide distribution whose moments are not known."""
    if getattr(law, "has_enumerate_support", False):
        return 'Write infer={"enumerate": "parallel"} at the guide site to sum over its values.'
    return (
        "Choose a law that is Gaussian or a transformed Gaussian (LogNormal, an autoguide), or one-hot, "
        "categorical or Bernoulli."
    )
