"""When a circuit and its edges are beyond noise, over all edges and checkpoints that are looked at.

A run has dozens of checkpoints with up to thousands of edges. At three standard errors, one edge in 370 without an
effect is drawn; and a network that guesses has, at some checkpoints, a small lead by chance, of which every number is a
large share. So a circuit is drawn where the answer leads, and of it the edges that are beyond noise:

* the **lead** is resolved where the correct label has the larger logit in `LEAST_AHEAD` or more of the sequences
  (guessing among the context's labels gives 1/2), and the span exceeds `lead_level` standard errors;
* an **effect** is beyond noise where it exceeds `edge_level` standard errors.

Both levels hold with probability 1 − `FALSE_ALARM` for a whole run (Bonferroni): a network without any lead, over
`CHECKPOINTS` checkpoints, is drawn with a probability of at most 0.05, and so is an edge without an effect in a network
that leads. Errors are taken as normal.
"""

from functools import cache

import numpy as np
from scipy.special import ndtri

FALSE_ALARM = 0.05
"""The probability that a run without a circuit, or without an edge, is drawn with one at some checkpoint."""
CHECKPOINTS = 100
"""The number of checkpoints of a run for which the levels hold."""
LEAST_AHEAD = 0.6
"""The least share of sequences in which the correct label leads, of a circuit that is drawn; guessing gives 0.5."""
_FULL, _FAINTEST = 0.05, 0.4
"""The relative error of the span up to which edges are drawn in full, and the opacity of the least certain ones."""


def lead_level() -> float:
    """Standard errors that the span must exceed: z with P(Z > z) = 0.05/100, 3.29."""
    return _upper(FALSE_ALARM / CHECKPOINTS)


def edge_level(n_edges: int) -> float:
    """Standard errors that an effect must exceed, of so many edges: z with P(|Z| > z) = 0.05/(100 n); 4.4 for 50, 5.0
    for 1,000."""
    return _upper(FALSE_ALARM / (2 * CHECKPOINTS * max(1, n_edges)))


@cache
def _upper(probability: float) -> float:
    """The z that a standard normal variable exceeds with this probability."""
    return float(-ndtri(probability))


def resolved(span: float, error: float, ahead: float) -> bool:
    """Whether the correct label leads, so that shares of the lead are numbers."""
    return bool(span > lead_level() * error and ahead >= LEAST_AHEAD)


def opacity(span: float, error: float) -> float:
    """The opacity of edges whose effects are shares of this span, in [0.4, 1]: it falls linearly with the relative
    error of the span, which all effects share, from 1 at 5 % to 0.4 at that of `lead_level`."""
    relative, most = error / span if span > 0 else np.inf, 1 / lead_level()
    return float(np.clip(1 - (1 - _FAINTEST) * (relative - _FULL) / (most - _FULL), _FAINTEST, 1))
