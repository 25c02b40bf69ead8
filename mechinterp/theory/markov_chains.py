"""Strategies of predicting a Markov chain in context (Edelman et al. 2024, section 2).

The predictions at a position take the tokens x_1 … x_t up to it. With k tokens, n_j the number of times that j occurs
in them, n_ij that it follows i, n_i the sum of n_ij over j, and α the concentration of the Dirichlet prior:

* uniform: 1/k;
* unigram: (n_j + α) / (t + kα), Bayes-optimal for tokens that are i.i.d. from a Dirichlet distribution;
* bigram: (n_ij + α) / (n_i + kα) with i = x_t, Bayes-optimal for chains whose rows are Dirichlet and
  whose first token tells nothing of them.

α = 1 is the paper's case. Networks pass through them in this order.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot


def uniform(tokens: Int[Tensor, "batch pos"], k: int) -> Float[Tensor, "batch pos k"]:
    """The prediction 1/k of all tokens."""
    return torch.full((*tokens.shape, k), 1 / k, dtype=torch.float64)


def unigram(tokens: Int[Tensor, "batch pos"], k: int, alpha: float = 1.0) -> Float[Tensor, "batch pos k"]:
    """The prediction by how often every token has occurred."""
    return _smoothed(one_hot(tokens, k).cumsum(dim=1), alpha)


def bigram(tokens: Int[Tensor, "batch pos"], k: int, alpha: float = 1.0) -> Float[Tensor, "batch pos k"]:
    """The prediction by how often every token has followed the present one."""
    return _smoothed(bigram_counts(tokens, k), alpha)


def bigram_counts(tokens: Int[Tensor, "batch pos"], k: int) -> Int[Tensor, "batch pos k"]:
    """n_ij of i = x_t at every position: how often j has followed the present token."""
    (n_batch, T), rows = tokens.shape, torch.arange(len(tokens))
    so_far = torch.zeros(n_batch, k, k, dtype=torch.int64)
    counts = torch.empty(n_batch, T, k, dtype=torch.int64)
    for t in range(T):
        if t:
            so_far[rows, tokens[:, t - 1], tokens[:, t]] += 1
        counts[:, t] = so_far[rows, tokens[:, t]]
    return counts


def _smoothed(counts: Int[Tensor, "batch pos k"], alpha: float) -> Float[Tensor, "batch pos k"]:
    """(n_j + α) / (Σ n + kα)."""
    weights = counts.double() + alpha
    return weights / weights.sum(dim=-1, keepdim=True)
