"""Ablation: take something out of a network and see what is lost.

Every way of taking out is a member of `Ablation`; each applies at a `Site` (hook, role, head). What only the OV
circuit does is left by ablating ``hook_pattern`` with the mean; what only the QK circuit does, by ablating ``hook_v``
with the mean. A `Subspace` instead of an ablation projects it out of the residual stream.
"""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.patching import Site, replaced
from mechinterp.circuits.rerun import Activations, Parameters, activations, rerun
from mechinterp.circuits.subspaces import Subspace
from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch

_RESIDUAL = (
    "hook_embed",
    "hook_resid_pre",
    "hook_resid_post",
    "hook_attn_out",
    "hook_v",
    "hook_z",
    "classifier.hook_in",
)
"""Hooks in the coordinates of the residual stream; values are, as W_O is the identity."""


class Ablation(NamedEnum):
    """What stands in for an activation."""

    zero = "zeros"
    mean = "its mean over sequences, position by position"
    resample = "that of another sequence, drawn at random"
    uniform = "attention patterns only: equal attention to all tokens j ≤ i"
    previous_token = "attention patterns only: all attention to the token before; the first token's to itself"
    not_previous_token = "attention patterns only: none to the token before; the rest, scaled up, stays"
    correct_label = "attention patterns only: all attention of the target to its correct labels; other rows stay"

    @property
    def of_patterns(self) -> bool:
        """Whether it is for attention patterns only."""
        return self not in (Ablation.zero, Ablation.mean, Ablation.resample)


def substitute(base: Activations, hook: str, how: "Ablation | Subspace", batch: Batch, seed: int = 0) -> Tensor:
    """What an ablation puts in the place of an activation."""
    old = base[hook]
    if isinstance(how, Subspace):
        if not hook.endswith(_RESIDUAL) or old.shape[-1] != how.basis.shape[1]:
            raise MechinterpError(f"{hook} is no residual stream of {how.basis.shape[1]} dimensions to project in")
        return old - old @ how.projector.to(old.dtype)
    if how.of_patterns and not hook.endswith("hook_pattern"):
        raise MechinterpError(f"ablation {how.name} is for attention patterns; {hook} is none")
    if how is Ablation.zero:
        return torch.zeros_like(old).masked_fill(old == -torch.inf, -torch.inf)  # the causal mask stays
    if how is Ablation.mean:
        return old.mean(dim=0, keepdim=True).expand_as(old)
    if how is Ablation.resample:
        n = len(old)
        if n < 2:
            raise MechinterpError("resampling takes two sequences or more")
        shift = generator(seed, Stream.CORRUPTION, 1).integers(1, n, size=n)
        return old[(torch.arange(n) + torch.from_numpy(shift)) % n]
    n_pos = old.shape[-1]
    if how is Ablation.uniform:
        allowed = torch.ones(n_pos, n_pos, dtype=old.dtype).tril()
        return (allowed / allowed.sum(dim=-1, keepdim=True)).expand_as(old)
    if how is Ablation.previous_token:
        before = torch.zeros(n_pos, n_pos, dtype=old.dtype)
        before[torch.arange(n_pos), (torch.arange(n_pos) - 1).clamp(min=0)] = 1
        return before.expand_as(old)
    if how is Ablation.not_previous_token:
        # a little of equal attention, so that a row which had nothing else is left with that
        before = torch.ones(n_pos, n_pos, dtype=torch.bool).tril(-1).triu(-1)
        allowed = torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
        rest = (old + torch.finfo(old.dtype).tiny * 1e3 * allowed).masked_fill(before, 0)
        return rest / rest.sum(dim=-1, keepdim=True)
    if "correct_label" not in batch.roles:
        raise MechinterpError("ablation correct_label needs the role 'correct_label', which this task does not have")
    correct = batch.roles["correct_label"].to(old.dtype)
    changed, shown = old.clone(), correct.sum(dim=-1) > 0  # a sequence without a correct label stays as it is
    changed[shown, :, -1] = (correct / correct.sum(dim=-1, keepdim=True))[shown, None]
    return changed


def ablate(
    parameters: Parameters | nn.Module,
    batch: Batch,
    where: Sequence[Site] | None = None,
    how: "Ablation | Subspace | str | Iterable[Ablation | Subspace | str]" = tuple(Ablation),
    *,
    metric: Metric | str = Metric.accuracy,
    seed: int = 0,
) -> pd.DataFrame:
    """Ablate every site in every way that fits it: one row each, with the metric before (``intact``) and after.

    Without `where`, the patterns, values and outputs of every layer's head, and all of them in every head. Pattern
    ablations are left out at other hooks, unless no other way was asked for, which raises. Foils are the labels
    after the answers, mod L.
    """
    metric = member(Metric, metric)
    several = [how] if isinstance(how, Ablation | Subspace | str) else how
    ways = [each if isinstance(each, Subspace) else member(Ablation, each) for each in several]
    with torch.no_grad():
        base = activations(parameters, batch.inputs)
        foils = (batch.labels + 1) % base.logits.shape[-1]
        intact = float(metric.of(base.logits, batch.labels, foils))
        rows = []
        for site in component_sites(base) if where is None else where:
            fitting = [each for each in ways if _fits(each, site.hook, batch)] or ways
            for each in fitting:
                value = replaced(base[site.hook], substitute(base, site.hook, each, batch, seed), site, batch.roles)
                number = float(metric.of(rerun(base, site.hook, value), batch.labels, foils))
                rows.append({**vars(site), "ablation": each.name, "intact": intact, "value": number})
    return pd.DataFrame(rows)


def component_sites(base: Activations) -> list[Site]:
    """Pattern, value and output of every layer, and of every head where a layer has several."""
    heads: list[int | None] = [None, *range(base.n_heads)] if base.n_heads > 1 else [None]
    hooks = ("attn.hook_pattern", "attn.hook_v", "attn.hook_z")
    return [
        Site(f"blocks.{layer}.{hook}", None, head) for layer in range(base.n_layers) for hook in hooks for head in heads
    ]


def _fits(how: "Ablation | Subspace", hook: str, batch: Batch) -> bool:
    if how is Ablation.correct_label and "correct_label" not in batch.roles:
        return False
    return isinstance(how, Subspace) or hook.endswith("hook_pattern") or not how.of_patterns
