"""Repeated random tokens (Elhage et al. 2021, Olsson et al. 2022): what came after this token before?

A sequence is a random string of p different tokens, repeated to the end: t_i = t_{i−p}. From the second occurrence on,
the next token is known: it is the one after the earlier occurrence. As p is drawn anew for every sequence, no fixed
distance tells it: attention must find the earlier occurrence by its content.
"""

import numpy as np
import torch

from mechinterp.config import InductionTokensConfig
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch, evaluation_stream
from mechinterp.tasks.corruption import Corruption, exchanged
from mechinterp.tasks.registry import register_task
from mechinterp.torch_state import torch_defaults


@register_task(InductionTokensConfig)
class InductionTokensTask:
    """The task of an `InductionTokensConfig`. Every position has an answer, the next token.

    Roles: ``first``, the tokens of the first period, whose next token cannot be known, and ``repeat``, all others;
    ``target``, the last token; ``correct_item``, the earlier occurrences of the target, and ``correct_label``, the
    tokens after them, which are the answer. Evaluation sets, with separate random streams: ``icl``, sequences as in
    training; ``unrepeated``, tokens that are all drawn at random, of which accuracy is chance.
    """

    corruptions = (Corruption.swap_label, Corruption.replace_target, Corruption.swap_item)
    evaluations = ("icl", "unrepeated")

    def __init__(self, config: InductionTokensConfig, seed: int):
        self.config, self.seed = config, seed
        self.d_model, self.d_vocab, self.n_pos, self.n_labels = 0, config.d_vocab, config.n_pos, config.n_labels

    @property
    def guessing_levels(self) -> dict[str, float]:
        """Accuracies of ways of guessing: any token, and a token of the period (of the longest one)."""
        any_token, of_period = 1 / self.d_vocab, 1 / self.config.max_period
        return {
            f"guessing any token (1/V = {any_token:.3f})": any_token,
            f"guessing among the tokens of a period ({of_period:.3f} at the longest)": of_period,
        }

    def train_batch(self, step: int, size: int) -> Batch:
        """The training batch of update `step`."""
        return self._draw(Stream.TRAIN, step, size)

    @torch_defaults()
    def sample(self, evaluation: str, size: int, seed: int = 0) -> Batch:
        """`size` sequences of ``icl`` or ``unrepeated``; a pure function of its arguments."""
        stream = evaluation_stream(self.evaluations, evaluation, size, seed)
        return self._draw(stream, seed, size, repeated=evaluation == "icl")

    def corrupted(self, corruption: Corruption, n_pairs: int, seed: int = 0) -> tuple[Batch, Batch]:
        """Repeated sequences and their corrupt twins; a pure function of its arguments.

        swap_label: in all the context, the answer and another of its tokens change places. replace_target: the last
        token becomes another one of the context. swap_item: in all the context, the last token and another one.
        """
        rng, clean = generator(self.seed, Stream.CORRUPTION, seed), self.sample("icl", n_pairs, seed)
        tokens, answers = clean.inputs.numpy().copy(), clean.labels.numpy()
        context, targets = tokens[:, :-1], tokens[:, -1]
        taken = (targets, answers, context[:, -1])  # the last of them is followed by the target
        known = np.all([context != token[:, None] for token in taken], axis=0)
        other = np.take_along_axis(context, np.where(known, rng.random(known.shape), -1.0).argmax(1)[:, None], 1)[:, 0]
        after_other = np.take_along_axis(context, (context == other[:, None]).argmax(1)[:, None] + 1, 1)[:, 0]
        if corruption is Corruption.replace_target:
            tokens[:, -1] = other
        else:
            moved = answers if corruption is Corruption.swap_label else targets
            tokens[:, :-1] = exchanged(context, moved[:, None], other[:, None])
        wrong = other if corruption is Corruption.swap_label else after_other
        sequences = torch.from_numpy(tokens)
        return clean, Batch(sequences, torch.from_numpy(wrong.copy()), clean.roles, sequences, token_classes=sequences)

    def _draw(self, stream: int, step: int, size: int, *, repeated: bool = True) -> Batch:
        """Tokens, answers and roles of new sequences."""
        config, T = self.config, self.n_pos
        rng, places = generator(self.seed, stream, step), np.arange(T + 1)
        period = rng.integers(config.min_period, config.max_period, (size, 1), endpoint=True)
        drawn = rng.permuted(np.broadcast_to(np.arange(self.d_vocab), (size, self.d_vocab)), axis=1)
        string = np.take_along_axis(drawn, places % period, axis=1)
        if not repeated:
            string = rng.integers(0, self.d_vocab, string.shape)
        string, behind = torch.from_numpy(string), torch.from_numpy(places[:T] - (T - 1))
        tokens, answers, periods = string[:, :T], string[:, 1:], torch.from_numpy(period)
        target = torch.arange(T) == T - 1
        roles = {"target": target.expand(size, T)}
        if repeated:
            first = torch.arange(T) < periods
            earlier, after = ((behind - shift) % periods == 0 for shift in (0, 1))
            roles |= {"first": first, "repeat": ~first}
            roles |= {"correct_item": earlier & ~target, "correct_label": after & ~target}
        return Batch(tokens, answers[:, -1], roles, tokens, token_classes=tokens, answers=answers)
