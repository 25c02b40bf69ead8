"""The Fourier circuit of modular addition (Nanda et al. 2023, sections 4 and 5.1).

A network that has found the rule adds a and b as angles: with w_k = 2πk/p, it embeds a number x as cos(w_k x) and
sin(w_k x) at a few **key frequencies** k, and its logit of c is a sum of cos(w_k (a+b−c)). With z_abc the logits of all
p² pairs and the orthonormal functions f of s = a+b mod p, which are 1/√p and, for k = 1 … ⌊p/2⌋, cos(w_k s) and
sin(w_k s) up to a factor:

* ``embedding_gini``: the Gini coefficient Σ_i (2i − n − 1) x_i / (n Σ_i x_i) of the norms x₁ ≤ … ≤ x_n of the Fourier
  components of W_E, without that of the constant: n = p − 1. In [0, 1): 1 − m/n if m components are of equal size and
  the others 0, and 0 if all are equal;
* ``restricted_loss``: the loss, on all p² pairs, of the logits' mean over pairs and their components along f_cos and
  f_sin of the key frequencies alone, nats;
* ``excluded_loss``: the loss, on the evaluation set ``train``, of the logits less these components, nats.

The component of z along f is f(a+b) Σ_ab f(a+b) z_abc / p, for every c. A network that uses the rule alone has its full
loss when restricted, and ln p or more when they are excluded; for one that has memorised its training set, the first is
large and the second small.

The paper's key frequencies are those of the network at the end of training, which a measure of one checkpoint does not
know. Here they are, at every checkpoint, the `KEY_FREQUENCIES` frequencies along whose cos(w_k (a+b−c)) the logits have
the largest squared component. Before the circuit has formed they may differ from the final ones.
All measures are of the weights, also in columns ``clamped_…``.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechinterp.errors import MechinterpError
from mechinterp.measures.base import Observation, register
from mechinterp.models.forward import forward
from mechinterp.models.network import Network
from mechinterp.tasks.modular_addition import ModularAdditionTask

KEY_FREQUENCIES = 5
"""The number of key frequencies, as the paper's network has."""
_PART = 4_000
"""Pairs in one forward pass."""


def fourier_basis(p: int) -> Float[Tensor, "p p"]:
    """The orthonormal functions of 0 … p−1 as rows: 1/√p, then cos(w_k x) and sin(w_k x) by k; of even p, the sine of
    k = p/2, which is 0, is left out."""
    angles = 2 * torch.pi / p * torch.outer(torch.arange(1, p // 2 + 1), torch.arange(p)).remainder(p).double()
    waves = torch.stack([angles.cos(), angles.sin()], dim=1).flatten(0, 1)[: p - 1]
    return functional.normalize(torch.cat([torch.ones(1, p).double(), waves]), dim=1)


def gini(sizes: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """The Gini coefficient of sizes ≥ 0, in [0, 1); NaN if all are 0."""
    n, ascending = len(sizes), sizes.sort().values
    return ((2 * torch.arange(1, n + 1) - n - 1) * ascending).sum() / (n * sizes.sum())


def sum_logits(network: Network, p: int) -> Float[Tensor, "first second p"]:
    """The logits of all pairs of numbers, double precision."""
    numbers = torch.arange(p)
    tokens = torch.cat([torch.cartesian_prod(numbers, numbers), torch.full((p * p, 1), p)], dim=1)
    parts = [forward(network, part, target_only=True) for part in tokens.split(_PART)]
    return torch.cat(parts).view(p, p, p).double()


def key_components(logits: Float[Tensor, "p p p"]) -> Float[Tensor, "sum p"]:
    """The components of logits [a, b, c] along the cosines and sines of a+b at the key frequencies; [a+b mod p, c]."""
    p, basis = len(logits), fourier_basis(len(logits))
    numbers = torch.arange(p)
    by_sum = logits[numbers, (numbers[:, None] - numbers) % p].mean(dim=1)  # Σ_ab f(a+b) z_abc is p times its f
    spectrum = basis[1:] @ by_sum @ basis[1:].T
    frequency = torch.arange(p - 1) // 2
    matched = torch.zeros(p // 2).double().index_add(0, frequency, spectrum.diagonal())  # with cos w_k(a+b−c)
    matched = matched / frequency.bincount().sqrt()
    key = torch.isin(frequency, matched.square().topk(min(KEY_FREQUENCIES, p // 2)).indices)
    return basis[1:][key].T @ (basis[1:][key] @ by_sum)


@register(task=ModularAdditionTask)
def embedding_gini(seen: Observation) -> Float[Tensor, ""]:
    """The Gini coefficient of the norms of the Fourier components of W_E; in [0, 1)."""
    p = seen.logits.shape[1]
    return gini((fourier_basis(p)[1:] @ _network(seen).parameters["embed.W_E"][:p].double()).norm(dim=1))


@register(task=ModularAdditionTask)
def restricted_loss(seen: Observation) -> Float[Tensor, ""]:
    """The loss of the key frequencies alone, on all pairs, nats."""
    logits = sum_logits(_network(seen), seen.logits.shape[1])
    restricted = logits.mean(dim=(0, 1)) + key_components(logits)
    return functional.cross_entropy(restricted, torch.arange(len(logits)))  # every sum has p pairs


@register(task=ModularAdditionTask, evaluation="train")
def excluded_loss(seen: Observation) -> Float[Tensor, ""]:
    """The loss without the key frequencies, on the training set, nats."""
    logits = sum_logits(_network(seen), seen.logits.shape[1])
    first, second, labels = *seen.batch.inputs[:, :2].T, seen.batch.labels
    return functional.cross_entropy(logits[first, second] - key_components(logits)[labels], labels)


def _network(seen: Observation) -> Network:
    if seen.network is None:
        raise MechinterpError("the Fourier measures are of a network, which this observation has not")
    return seen.network
