"""Random programs of two to four operations, against enumeration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices import seeded
from tests.discrete_sample.oracle import check, latent

NUMBER = st.integers(-2, 3)

# Steps from an integer tensor to an integer tensor of any shape with at least one dim.
STEPS = [
    st.builds(lambda a: lambda z: z + a, NUMBER),
    st.builds(lambda a: lambda z: a - z, NUMBER),
    st.builds(lambda a: lambda z: z * a, NUMBER),
    st.builds(lambda a: lambda z: z % a, st.integers(2, 4)),
    st.builds(lambda a: lambda z: z // a, st.integers(2, 3)),
    st.builds(lambda a: lambda z: (z == a).long(), NUMBER),
    st.builds(lambda a: lambda z: torch.where(z > a, z, -z), NUMBER),
    st.builds(lambda a: lambda z: z.clamp(min=a), NUMBER),
    st.builds(lambda a: lambda z: (~(z < a)) * 2, NUMBER),
    st.builds(lambda a: lambda z: z.masked_fill(z == a, 1), NUMBER),
    st.just(lambda z: z * z),
    st.just(lambda z: z + torch.arange(z.shape[-1])),
    st.just(lambda z: torch.tensor([2, 0, 3, 1])[z % 4]),
    st.just(lambda z: z.flip(-1)),
    st.just(lambda z: z[..., None]),
    st.just(lambda z: z[None]),
    st.just(lambda z: z.transpose(0, -1)),
    st.just(lambda z: z.reshape(-1)),
    st.just(lambda z: z[..., :2]),
    st.just(lambda z: z[0] if z.dim() > 1 else z),
    st.just(lambda z: z.expand(2, *z.shape)),
    st.just(lambda z: z[torch.arange(z.shape[0]) * 0]),
    st.just(lambda z: torch.cat([z, z * 2], -1)),
    st.just(lambda z: torch.stack([z, z * 0 + 1])),
    st.just(lambda z: F.one_hot(z % 4, 4)),
    st.just(lambda z: z.repeat_interleave(2, -1)),
]

# Ends that use it.
ENDS = [
    lambda z, t: t[z % 4],
    lambda z, t: F.embedding(z % 4, t),
    lambda z, t: F.one_hot(z % 4, 4).to(t.dtype) @ t,
    lambda z, t: torch.where(z > 1, t[0, 0], t[1, 1]),
    lambda z, t: (z == 1) * t[0, 0],
    lambda z, t: z,
    lambda z, t: z.double() / 3,
    lambda z, t: (z == 1).sum(0),
    lambda z, t: t[0].take(z.reshape(-1) % 2),
    lambda z, t: t.gather(0, (z.reshape(1, -1) % 4)[:, :1].expand(1, 3)),
]


@settings(max_examples=120)
@given(
    steps=st.lists(st.one_of(STEPS), max_size=3), end=st.sampled_from(ENDS), seed=st.integers(0, 9)
)
def test_programs_of_one_index(steps, end, seed):
    generator = seeded(seed)
    z = latent("index", (2, 2), 3, generator)
    table = torch.randn(4, 3, dtype=torch.double, generator=generator)

    def program(z, t):
        for step in steps:
            z = step(z)
        return end(z, t)

    check(program, [z], [table])


PAIRS = [
    lambda z, w: z + w,
    lambda z, w: z * w,
    lambda z, w: (z == w).long(),
    lambda z, w: torch.where(z > w, z, w * 2),
    lambda z, w: z * 3 + w,
    lambda z, w: z % (w * 0 + 3) - w,
    lambda z, w: ((z > 0) & (w > 0)) | (z == 2),
    lambda z, w: torch.maximum(z, w),
]
# Steps after the pair: they may use the first latent again, which must not count as another scalar.
AGAIN = [
    lambda x, z: x,
    lambda x, z: (x == 1) & (z > 0),
    lambda x, z: x + z,
    lambda x, z: torch.where(z == 1, x, 0),
]


@settings(max_examples=80)
@given(
    first=st.sampled_from(["index", "bernoulli"]),
    pair=st.sampled_from(PAIRS),
    again=st.sampled_from(AGAIN),
    move=st.sampled_from([lambda x: x, lambda x: x.T, lambda x: x[1:], lambda x: x[:, None]]),
    end=st.sampled_from(ENDS[:7]),
    seed=st.integers(0, 9),
)
def test_programs_of_two_latents(first, pair, again, move, end, seed):
    generator = seeded(seed)
    latents = [latent(first, (2, 2), 3, generator), latent("index", (2, 2), 3, generator)]
    table = torch.randn(4, 3, dtype=torch.double, generator=generator)

    def program(z, w, t):
        z = z.long()
        return end(move(again(pair(z, w), z)).long(), t)

    check(program, latents, [table])
