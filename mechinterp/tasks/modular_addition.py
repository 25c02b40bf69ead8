"""Addition modulo p (Power et al. 2022, Nanda et al. 2023): a rule, learned from a part of its cases.

A sequence is a, b, "=" with the answer (a + b) mod p. A random part of the p² pairs (a, b) is trained on, again and
again. A network that memorises it answers these pairs alone; one that has found the rule answers the others too. The
sudden rise of the accuracy on the others, long after that on the training set, is called grokking.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechinterp.config import ModularAdditionConfig
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch, evaluation_stream
from mechinterp.tasks.corruption import Corruption
from mechinterp.tasks.registry import register_task
from mechinterp.torch_state import torch_defaults


@register_task(ModularAdditionConfig)
class ModularAdditionTask:
    """The task of a `ModularAdditionConfig`: the seed fixes which pairs are in the training set.

    Roles: ``first`` and ``second``, the two numbers, and ``target``, the token "=". Evaluation sets: ``test``, the
    pairs that are not trained on, and ``train``, the training set.
    """

    corruptions = (Corruption.replace_operand,)
    evaluations: tuple[str, ...] = ("test", "train")

    def __init__(self, config: ModularAdditionConfig, seed: int):
        self.config, self.seed = config, seed
        self.d_model, self.d_vocab, self.n_pos, self.n_labels = 0, config.d_vocab, config.n_pos, config.n_labels
        order = generator(seed, Stream.TASK).permutation(config.modulus**2)
        self.pairs = {"test": order[config.n_train :], "train": order[: config.n_train]}
        """The numbers p·a + b of the pairs of either set, in random order."""

    @property
    def guessing_levels(self) -> dict[str, float]:
        """Accuracies of ways of guessing: any number."""
        return {f"guessing any number (1/p = {1 / self.n_labels:.3f})": 1 / self.n_labels}

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`: `size` different pairs of the training set.

        With `size` that of the training set, every batch is the whole set, in the same order (full batch). Smaller
        batches pass through the set in epochs of ⌊n/size⌋ batches, in an order that is drawn for every epoch; the
        n mod size pairs that do not fill a batch are left out of that epoch.
        """
        pairs = self.pairs["train"]
        epoch, place = divmod(step, len(pairs) // size)
        if size < len(pairs):
            pairs = generator(self.seed, Stream.TRAIN, epoch).permutation(pairs)
        return self._batch(pairs[place * size : (place + 1) * size])

    @torch_defaults()
    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of ``test`` or ``train``; a pure function of its arguments.

        They are drawn without replacement, so that a `size` equal to the number of pairs gives the whole set once. A
        larger `size` goes on with the set in another random order.
        """
        pairs = self.pairs[evaluation] if evaluation in self.pairs else np.empty(0)
        rng = generator(self.seed, evaluation_stream(self.evaluations, evaluation, size, seed), seed)
        return self._batch(np.concatenate([rng.permutation(pairs) for _ in range(-(-size // len(pairs)))])[:size])

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int = 0) -> tuple[Batch, Batch]:
        """Sequences of ``test`` and their corrupt twins, whose first number is another one, drawn uniformly.

        The twins are of all pairs; some are in the training set.
        """
        p, clean = self.n_labels, self.sample("test", n_pairs, seed)
        first, second, _ = clean.inputs.numpy().T
        other = (first + generator(self.seed, Stream.CORRUPTION, seed).integers(1, p, n_pairs)) % p
        return clean, self._batch(p * other + second)

    def _batch(self, pairs: Int[np.ndarray, "batch"]) -> Batch:
        """The sequences of pairs, by their numbers p·a + b."""
        p = self.n_labels
        first, second = np.divmod(pairs, p)
        tokens = torch.from_numpy(np.stack([first, second, np.full_like(first, p)], axis=1))
        places = torch.eye(3, dtype=torch.bool)[:, None].expand(3, len(pairs), 3)
        roles: dict[str, Tensor] = dict(zip(("first", "second", "target"), places, strict=True))
        return Batch(tokens, torch.from_numpy((first + second) % p), roles)
