"""Accuracy: the fraction of sequences whose target's label has the largest logit; in [0, 1].

Columns ``{icl,iwl,swap,train}_accuracy``. Chance is 1/L; guessing among the labels of a bursty context gives B/N.
On `icl` only the context tells the label (in-context learning), on `iwl` only the weights do (in-weights learning).
Source: Reddy 2023, section 2.
"""

from jaxtyping import Float
from torch import Tensor

from mechinterp.measures.base import Observation, register


@register(each_evaluation=True)
def accuracy(seen: Observation) -> Float[Tensor, ""]:
    """Fraction of targets that are classified correctly."""
    return (seen.logits.argmax(dim=-1) == seen.batch.labels).to(seen.logits.dtype).mean()
