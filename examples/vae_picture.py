"""The picture of the VAE demo: learning curves, reconstructions and samples from the prior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import pyro
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from vae import LinearDecoderVAE, Run

NUM_SHOWN = 8
SAMPLE_ROWS = 2
STYLES: dict[str, dict[str, Any]] = {
    "SilentELBO": {"color": "#0b6e4f", "linewidth": 2.4, "zorder": 3},
    "TraceMeanField_ELBO": {"color": "#e09f3e", "linewidth": 1.6, "zorder": 2},
    "Trace_ELBO": {"color": "#9e2a2b", "linewidth": 1.6, "zorder": 1},
}


def draw(
    runs_of_code: list[list[Run]], test_set: torch.Tensor, baseline: str, path: Path, seed: int = 0
) -> None:
    """Draw one row of panels per code to a PNG file at ``path``."""
    num_codes = len(runs_of_code)
    figure, panels = plt.subplots(
        num_codes,
        3,
        figsize=(14, 2.75 * num_codes),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": [1, 1.2, 1.2]},
    )
    for row, runs in enumerate(runs_of_code):
        silent, rival = runs[0], next(run for run in runs if run.loss == baseline)
        _curves(panels[row, 0], runs)
        shown = test_set[:NUM_SHOWN]
        reconstructions = [("digits", shown)]
        samples = []
        for run in runs:
            reconstructions.append((run.loss, _reconstruct(run.vae, shown)))
        for run in (silent, rival):
            pyro.set_rng_seed(seed)  # the same draws from the prior for both
            samples.append((run.loss, _sample(run.vae, SAMPLE_ROWS * NUM_SHOWN)))
        _tiles(panels[row, 1], reconstructions)
        _tiles(panels[row, 2], samples)
    titles = (
        "test −ELBO, nats per digit",
        "test digits and their reconstructions",
        "samples from the prior",
    )
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=12, pad=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _curves(panel: Axes, runs: list[Run]) -> None:
    for run in runs:
        steps, values = zip(*run.curve, strict=True)
        panel.plot(steps, values, label=run.loss, **STYLES[run.loss])
    finals = [run.curve[-1][1] for run in runs]
    starts = [run.curve[0][1] for run in runs]
    # The first steps fall far; the story is below them.
    panel.set_ylim(top=max(finals) + 0.15 * (max(starts) - max(finals)))
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_ylabel(f"{runs[0].vae.code.title} code", fontsize=12)
    panel.set_xlabel("training step")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=10)


def _tiles(panel: Axes, groups: list[tuple[str, torch.Tensor]]) -> None:
    """Rows of digits, each group named at its left, a little air between groups."""
    air, tick_at, strips = 5, [], []
    height = 0
    for name, digits in groups:
        rows = digits.reshape(-1, NUM_SHOWN, 28, 28)
        strip = torch.cat([torch.cat(list(row), dim=1) for row in rows])
        tick_at.append((height + len(strip) / 2, name))
        strips += [strip, torch.full((air, strip.shape[1]), torch.nan)]
        height += len(strip) + air
    image = torch.cat(strips[:-1]).numpy()
    panel.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([at for at, _ in tick_at], [name for _, name in tick_at], fontsize=10)
    panel.tick_params(length=0)
    for label, (_, name) in zip(panel.get_yticklabels(), tick_at, strict=True):
        label.set_color(STYLES.get(name, {}).get("color", "black"))
    panel.spines[:].set_visible(False)
    panel.set_anchor("N")


@torch.no_grad()
def _reconstruct(vae: LinearDecoderVAE, digits: torch.Tensor) -> torch.Tensor:
    """Mean pixels under the posterior: the decoder is linear, so it maps the mean code to them."""
    code = vae.posterior(digits).mean
    return vae.decoder(code.reshape(len(digits), -1)).clamp(0, 1)


@torch.no_grad()
def _sample(vae: LinearDecoderVAE, num_samples: int) -> torch.Tensor:
    """Mean pixels given codes drawn from the prior."""
    code = vae.prior(num_samples).sample()
    return vae.decoder(code.reshape(num_samples, -1)).clamp(0, 1)
