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
    n, e = values.shape[-1], values.double() - values.double().mean(dim=-1, keepdim=True)
    if classes is None:
        classes = torch.arange(n)[:, None].expand(n, 2)
    with_ones = torch.cat([torch.ones(1, n, dtype=e.dtype), e.reshape(-1, n)])
    share, *correlated = _sums_over_sharing(with_ones, classes) / n**2
    correlated = torch.stack(correlated).view(e.shape[:-1]) / (1 - share)
    independent = e.square().sum(dim=-1) / (n * (n - 1))
    return torch.where(share == 1, torch.nan, torch.maximum(correlated, independent).sqrt())


def _sums_over_sharing(x: Float[Tensor, "sets batch"], classes: Int[Tensor, "batch 2"]) -> Float[Tensor, "sets"]:
    """Σ x_i x_j over the pairs that share a class: by every class, less the pairs that share two and count twice."""
    first, second = classes.unbind(dim=1)
    of_two = torch.where(first == second, 0, x)
    by_class = _sums(torch.cat([x, of_two], dim=1), torch.cat([first, second])).square().sum(dim=1)
    if bool((first == second).all()):
        return by_class
    by_both = _sums(of_two, torch.stack([classes.amin(dim=1), classes.amax(dim=1)], dim=1))
    return by_class - by_both.square().sum(dim=1)


def _sums(x: Float[Tensor, "sets rows"], keys: Int[Tensor, "rows *key"]) -> Float[Tensor, "sets keys"]:
    """Sums of x over rows with the same key."""
    unique, index = keys.unique(dim=0, return_inverse=True)
    return x.new_zeros(len(x), len(unique)).index_add(1, index, x)
