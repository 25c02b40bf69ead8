"""The gradient of the loss and its noise, from one gradient per sequence.

With g_i = ∇ℓ_i(θ) of n independent sequences, ḡ their mean and Σ their covariance,

    norm          ‖ḡ‖, of the loss on the n sequences
    squared_norm  |G|² = ‖ḡ‖² − tr Σ / n, of the loss on the whole distribution; unbiased, and so also negative
    noise         tr Σ = Σ_i ‖g_i − ḡ‖² / (n − 1)
    scale         tr Σ / |G|², the simple noise scale, in sequences: at a batch of this size the noise of a gradient is
                  as large as the gradient (McCandlish et al. 2018, arXiv 1812.06162, equation 2.9 and appendix A.1)

Without the correction by tr Σ / n, a gradient of zero would seem to have the norm √(tr Σ / n). Standard errors are
jackknives over blocks of sequences (Efron & Stein 1981): of the estimate from all blocks but one, for every block.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechinterp.geometry.loss import Loss, sequence_blocks

MEMORY = 64 * 2**20
"""Bytes of the gradients that are computed together."""
RESOLVED = 2.0
"""Standard errors by which |G|² must exceed 0 for the noise scale to be given."""


@dataclass(frozen=True)
class GradientNoise:
    """The gradient of some parameters and its noise, with standard errors; see the module's docstring."""

    norm: float
    norm_error: float
    squared_norm: float
    squared_norm_error: float
    noise: float
    noise_error: float
    scale: float
    """Not a number where |G|² is not resolved from 0 (`RESOLVED`)."""
    scale_error: float
    n: int
    """Sequences."""


@dataclass(frozen=True)
class GradientMoments:
    """Sums of the gradients of the sequences of blocks, and of the squares of their elements."""

    sums: Float[Tensor, "block P"]
    squares: Float[Tensor, "block P"]
    sizes: Int[Tensor, "block"]
    """Sequences in the blocks."""

    def noise(self, mask: Bool[Tensor, "P"] | None = None) -> GradientNoise:
        """Gradient and noise of all parameters, or of those in `mask`."""
        sums, squares = (self.sums, self.squares) if mask is None else (self.sums[:, mask], self.squares[:, mask])
        total, n = sums.sum(dim=0), self.sizes.sum()
        lengths = total @ total - 2 * (sums @ total) + (sums**2).sum(dim=1)  # ‖Σ g_i‖² of all blocks but one
        spread = squares.sum(dim=1)
        whole = _estimates(total @ total, spread.sum(), n)
        rest = _estimates(lengths.clamp(min=0), spread.sum() - spread, n - self.sizes)
        values = {name: float(value) for name, value in whole.items()}
        errors = {f"{name}_error": jackknife_error(rest[name]) for name in whole}
        if not values["squared_norm"] > RESOLVED * errors["squared_norm_error"]:
            values["scale"] = errors["scale_error"] = float("nan")
        return GradientNoise(**values, **errors, n=int(n))


def gradient_noise(loss: Loss, mask: Bool[Tensor, "P"] | None = None, *, blocks: int = 16) -> GradientNoise:
    """Gradient of the loss at θ* and its noise, of all parameters or of those in `mask`.

    Of several masks, take the `noise` of one `gradient_moments`.
    """
    return gradient_moments(loss, blocks=blocks).noise(mask)


def gradient_moments(loss: Loss, *, blocks: int = 16) -> GradientMoments:
    """Sums over the gradients of all n sequences at θ*, in blocks. Of n × P numbers, `MEMORY` is there at a time."""
    together = max(1, MEMORY // (loss.point.numel() * loss.point.element_size()))
    rows = [row for batch in sequence_blocks(loss.n, blocks) for row in batch]
    sums = torch.zeros(len(rows), len(loss.point), dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for block, row in enumerate(rows):
        for indices in row.split(together):
            _, gradients = loss.gradients(loss.point.expand(len(indices), -1), indices[:, None])
            sums[block] += gradients.double().sum(dim=0)
            squares[block] += (gradients.double() ** 2).sum(dim=0)
    return GradientMoments(sums, squares, torch.tensor([len(row) for row in rows]))


def jackknife_error(without: Float[Tensor, "block"]) -> float:
    """The standard error of an estimate, of which `without` has the values from all blocks but one."""
    count = len(without)
    return float(((without - without.mean()) ** 2).sum() * (count - 1) / count) ** 0.5


def _estimates(length: Tensor, spread: Tensor, n: Tensor) -> dict[str, Tensor]:
    """The quantities of the module's docstring, of ‖Σ g_i‖², Σ ‖g_i‖² and n."""
    squared_mean = length / n**2
    noise = ((spread - n * squared_mean) / (n - 1)).clamp(min=0)
    squared_norm = squared_mean - noise / n
    return {
        "norm": squared_mean.sqrt(),
        "squared_norm": squared_norm,
        "noise": noise,
        "scale": noise / squared_norm,
    }
