"""Interventions on a forward pass: hooks under TransformerLens' names, from the interventions of a config."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechinterp.attention_patterns import AttentionPattern, pattern_of
from mechinterp.config import ActivationIntervention, Clamp, CopyReadout, RunConfig, ScaleHeadOutput, Temperature
from mechinterp.errors import ConfigError, member
from mechinterp.tasks.base import Batch

Change = Callable[[Tensor], Tensor]


def forward_interventions(config: RunConfig) -> list[ActivationIntervention]:
    """The interventions of a config that change the forward pass at some step."""
    return [
        intervention
        for intervention in config.interventions
        if isinstance(intervention, ActivationIntervention) and intervention.acts
    ]


class ForwardInterventions:
    """The interventions that change one forward pass."""

    def __init__(self, interventions: Sequence[ActivationIntervention], batch: Batch, last_layer: int):
        self._interventions, self._batch, self._last = interventions, batch, last_layer

    @classmethod
    def at(cls, config: RunConfig, step: int, batch: Batch) -> "ForwardInterventions | None":
        """The interventions at the update from `step`, on a batch; None if none is on."""
        acting = [intervention for intervention in forward_interventions(config) if intervention.is_on(step)]
        return cls(acting, batch, config.model.n_layers - 1) if acting else None

    def hooks(self) -> dict[str, Change]:
        """Hooks of the forward pass, by name. A role or label that the batch lacks raises."""
        chains: dict[str, list[Change]] = {}
        for intervention in self._interventions:
            if not isinstance(intervention, Clamp | ScaleHeadOutput | Temperature):
                continue
            attn = f"blocks.{intervention.layer}.attn"
            if isinstance(intervention, Clamp):
                hook, change = f"{attn}.hook_pattern", _clamp(intervention, self._batch)
            elif isinstance(intervention, ScaleHeadOutput):
                hook, change = f"{attn}.hook_z", _scale_output(intervention)
            else:
                hook, change = f"{attn}.hook_attn_scores", _divide_scores(intervention.tau, intervention.head)
            chains.setdefault(hook, []).append(change)
        for intervention in self._interventions:  # last, since it reads the pattern as clamped
            if isinstance(intervention, CopyReadout):
                see, answer = _copy_readout(intervention, self._batch)
                chains.setdefault(f"blocks.{self._last}.attn.hook_pattern", []).append(see)
                chains.setdefault("classifier.hook_logits", []).append(answer)
        return {hook: _chained(changes) for hook, changes in chains.items()}

    def clamped_patterns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Factor and summand of the composed clamps of two layers with one head, p ← factor·p + summand.

        Those of layer 1's pattern, [1] and [query, key], and of the target's row of layer 2, [batch] and [batch, key].
        """
        n_pos, n_batch = self._batch.n_pos, len(self._batch)
        free1, fixed1 = torch.ones(1, dtype=torch.float64), torch.zeros(n_pos, n_pos, dtype=torch.float64)
        free2 = torch.ones(n_batch, dtype=torch.float64)
        fixed2 = torch.zeros(n_batch, n_pos, dtype=torch.float64)
        for clamp in self._interventions:
            assert isinstance(clamp, Clamp)
            c, weight = pattern_of(member(AttentionPattern, clamp.pattern), self._batch)
            if clamp.layer == 0:
                s = clamp.strength
                free1, fixed1 = (1 - s) * free1, (1 - s) * fixed1 + s * c[0]
            else:
                s = clamp.strength * weight[:, -1].double()
                free2, fixed2 = (1 - s) * free2, (1 - s)[:, None] * fixed2 + s[:, None] * c[:, -1]
        return free1, fixed1, free2, fixed2


def _clamp(clamp: Clamp, batch: Batch) -> Change:
    """p ← (1−s)·p + s·c in the rows that the pattern c has."""
    fixed, clamped = pattern_of(member(AttentionPattern, clamp.pattern), batch)

    def change(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        rows = slice(-pattern.shape[2], None)  # the last layer may have one query, the target's
        c, weight = fixed.to(pattern)[:, None, rows], clamp.strength * clamped.to(pattern)[:, None, rows, None]
        return _at_head(pattern, clamp.head, torch.lerp(pattern, c.expand_as(pattern), weight), dim=1)

    return change


def _scale_output(scale: ScaleHeadOutput) -> Change:
    def change(z: Float[Tensor, "batch query head d_head"]) -> Float[Tensor, "batch query head d_head"]:
        return _at_head(z, scale.head, (1 - scale.strength) * z, dim=2)

    return change


def _divide_scores(tau: float, head: int | None) -> Change:
    def change(scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        return _at_head(scores, head, scores / tau, dim=1)

    return change


def _copy_readout(copy: CopyReadout, batch: Batch) -> tuple[Change, Change]:
    """A hook that reads the pattern, and a hook that computes logits from it."""
    token_labels = batch.token_labels
    if token_labels is None:
        raise ConfigError("interventions: copy: the task's batches carry no token_labels; add them to its Batch")
    seen: dict[str, Tensor] = {}

    def see(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
        seen["attention"] = pattern[:, :, -1].mean(dim=1)
        return pattern

    def answer(logits: Float[Tensor, "batch n_labels"]) -> Float[Tensor, "batch n_labels"]:
        attention = seen["attention"]
        labels = torch.where(token_labels < 0, logits.shape[-1], token_labels).to(attention.device)
        copied = attention.new_zeros(len(logits), logits.shape[-1] + 1).scatter_add(1, labels, attention)[:, :-1]
        return torch.lerp(logits, copy.xi * copied, copy.strength)

    return see, answer


def _at_head(before: Tensor, head: int | None, after: Tensor, dim: int) -> Tensor:
    """`after` at one head and `before` at the others; without a head, `after` at all."""
    if head is None:
        return after
    chosen = torch.arange(before.shape[dim], device=before.device) == head
    return torch.where(chosen.view([-1 if axis == dim else 1 for axis in range(before.ndim)]), after, before)


def _chained(changes: list[Change]) -> Callable[..., Tensor]:
    """The composition of changes as one hook; TransformerLens passes the hook point as a second argument."""

    def change(value: Tensor, hook: object = None) -> Tensor:
        for one_change in changes:
            value = one_change(value)
        return value

    return change
