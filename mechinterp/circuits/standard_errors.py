"""Standard errors of means over sequences whose targets share classes.

Sequences with targets of the same class are correlated: a class is drawn once and serves several sequences. The clean
and the corrupt target of a pair may be of two classes, so that pairs overlap like the edges of a graph (dyads). The
variance of the mean is therefore the cluster-robust one for dyads (Fafchamps & Gubert 2007; Cameron, Gelbach
& Miller 2011), corrected for the estimated mean.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def standard_error(values: Float[Tensor, "batch"], classes: Int[Tensor, "batch 2"] | None = None) -> float:
    """Standard error of the mean over sequences, of which those that share one of their two classes are correlated:

        variance = Σ_{i~j} e_i e_j / (n² (1 − f)),    e = values − mean,    f = (number of i~j) / n²

    where i ~ j runs over ordered pairs of sequences that share a class, and of every sequence with itself. A sequence
    of one class names it twice. Without `classes` all are independent, f = 1/n, and this is the usual s²/n; below s²/n
    the variance never goes, since the sum over pairs is noisy and may be negative. In the unit of the values, ≥ 0; not
    a number where all sequences share a class, as one sequence does. Over untrained networks mean/error has a standard
    deviation of 1 ± 0.1 on item–label sequences (`benchmarks/span_error.py`). On paired items `swap_label` has 1.00
    with 64 pairs, 1.15 with 256 and 1.45 with 512: an untrained network answers a little differently to flipped
    labels, so that its span is not 0.
    """
    return float(standard_errors(values, classes))


def standard_errors(
    values: Float[Tensor, "*any batch"], classes: Int[Tensor, "batch 2"] | None = None
) -> Float[Tensor, "*any"]:
    """`standard_error` of many sets of values on the same sequences, whose classes are compared once."""
    return SharedClasses(values.shape[-1], classes).standard_errors(values)


class SharedClasses:
    """Which of n sequences share a class: compared once, for the standard errors of many values."""

    def __init__(self, n: int, classes: Int[Tensor, "batch 2"] | None = None):
        """Without `classes` no two sequences share one."""
        first, second = (torch.arange(n)[:, None].expand(n, 2) if classes is None else classes).unbind(dim=1)
        self._of_two = first != second
        self._by_class = _groups(torch.cat([first, second]))
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        span = high.max() - low.min() + 1
        self._by_both = _groups((low - low.min()) * span + high - low.min()) if bool(self._of_two.any()) else None
        self.share = float(self._sums(torch.ones(1, n, dtype=torch.float64)).item()) / n**2
        """The share of ordered pairs of sequences that share a class, f."""

    def standard_errors(self, values: Float[Tensor, "*any batch"]) -> Float[Tensor, "*any"]:
        """`standard_error` of every set of values."""
        n, e = values.shape[-1], values.double() - values.double().mean(dim=-1, keepdim=True)
        if self.share == 1:
            return e.new_full(e.shape[:-1], torch.nan)
        correlated = self._sums(e.reshape(-1, n)).view(e.shape[:-1]) / (n**2 * (1 - self.share))
        independent = e.square().sum(dim=-1) / (n * (n - 1))
        return torch.maximum(correlated, independent).sqrt()

    def _sums(self, x: Float[Tensor, "sets batch"]) -> Float[Tensor, "sets"]:
        """Σ x_i x_j over the pairs that share a class: by every class, less the pairs that share two and count
        twice."""
        of_two = torch.where(self._of_two, x, 0)
        by_class = _sums_by(self._by_class, torch.cat([x, of_two], dim=1)).square().sum(dim=1)
        if self._by_both is None:
            return by_class
        return by_class - _sums_by(self._by_both, of_two).square().sum(dim=1)


def _groups(keys: Int[Tensor, "rows"]) -> tuple[Int[Tensor, "rows"], int]:
    """The number of every row's key among the different keys, and how many there are."""
    unique, index = keys.unique(return_inverse=True)
    return index, len(unique)


def _sums_by(groups: tuple[Int[Tensor, "rows"], int], x: Float[Tensor, "sets rows"]) -> Float[Tensor, "sets keys"]:
    """Sums of x over rows with the same key."""
    index, n = groups
    return x.new_zeros(len(x), n).index_add(1, index, x)
