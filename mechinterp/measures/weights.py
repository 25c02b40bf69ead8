"""Measures of the weights alone, which every run has, whatever its network and task.

With θ_t all floating-point numbers of a checkpoint as one vector, and 0 and t−1 the first checkpoint and the one
before:

* ``weight_norm``: ‖θ_t‖₂;
* ``weights_from_first``: ‖θ_t − θ_0‖₂ / ‖θ_0‖₂, how far training has come;
* ``weights_from_previous``: ‖θ_t − θ_{t−1}‖₂ / ‖θ_{t−1}‖₂, how fast it goes.
"""

import math
from collections.abc import Mapping

from torch import Tensor

WEIGHT_MEASURES = ("weight_norm", "weights_from_first", "weights_from_previous")
"""Columns of these measures."""

Weights = Mapping[str, Tensor]


def weight_measures(weights: Weights, first: Weights, previous: Weights) -> dict[str, float]:
    """The measures of a checkpoint, by column."""
    return {
        "weight_norm": norm(weights),
        "weights_from_first": relative_distance(weights, first),
        "weights_from_previous": relative_distance(weights, previous),
    }


def norm(weights: Weights) -> float:
    """‖θ‖₂, over all numbers that are floating-point."""
    return sum(float(value.double().square().sum()) for value in weights.values() if value.is_floating_point()) ** 0.5


def relative_distance(weights: Weights, reference: Weights) -> float:
    """‖θ − θ'‖₂ / ‖θ'‖₂; 0 for equal weights, and not a number where θ' alone is 0."""
    changes = {name: value.double() - reference[name] for name, value in weights.items() if value.is_floating_point()}
    distance = norm(changes)
    return distance / scale if (scale := norm(reference)) else (math.nan if distance else 0.0)
