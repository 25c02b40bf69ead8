"""Ablation: the metric of a network with an activation replaced by zeros, its mean or an uninformative pattern.

A replacement is a member of `Ablation`, at a `Site` (hook, role, head), or a `Subspace`, which is projected out of the
residual stream. Ablating ``hook_pattern`` with the mean leaves the OV circuit alone; ablating ``hook_v`` with the mean
leaves the QK circuit alone.

Replacement by the mean follows Wang et al. 2023; ablation at fixed attention patterns, here at ``hook_v`` or
``hook_z``, follows Olsson et al. 2022.
"""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechinterp.attention_patterns import AttentionPattern, pattern_of, previous_token_mask
from mechinterp.circuits.activations import AnyActivations, activations_of, parts_of
from mechinterp.circuits.metrics import Metric, MetricFunction, metric_of
from mechinterp.circuits.patching import Site, hooks_to_patch, replaced, sites_of
from mechinterp.circuits.subspaces import Subspace
from mechinterp.errors import MechinterpError, NamedEnum, member
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Activations
from mechinterp.models.network import Network
from mechinterp.randomness import Stream, generator
from mechinterp.tasks.base import Batch
from mechinterp.torch_state import torch_defaults

_RESIDUAL = (
    *("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("hook_v", "hook_z", "hook_normalized", "classifier.hook_in"),
)
"""Hooks in the coordinates of the residual stream; those of values too, where W_O is the identity."""


class Ablation(NamedEnum):
    """The replacement of an activation."""

    zero = "zeros"
    mean = "its mean over sequences, position by position"
    resample = "that of another sequence, drawn at random"
    uniform = "attention patterns only: equal attention to all tokens j ≤ i"
    previous_token = "attention patterns only: all attention to the token before; the first token's to itself"
    not_previous_token = "attention patterns only: none to the token before; the rest, scaled up, stays"
    correct_label = "attention patterns only: all attention of the target to its correct labels; other rows stay"

    @property
    def of_patterns(self) -> bool:
        """Whether it applies to attention patterns only."""
        return self not in (Ablation.zero, Ablation.mean, Ablation.resample)

    @property
    def pattern(self) -> AttentionPattern | None:
        """The named attention pattern that replaces the activation, if it is one."""
        return AttentionPattern.__members__.get(self.name)


def substitute(
    base: AnyActivations,
    hook: str,
    how: "Ablation | Subspace",
    batch: Batch,
    reference: Tensor | None = None,
) -> Tensor:
    """The ablated activation at a hook, at all positions and heads.

    The ablations `mean` and `resample` put in the `reference`: the mean over sequences, or the activation of others.
    """
    old = base[hook]
    if isinstance(how, Subspace):
        if not hook.endswith(_RESIDUAL) or old.shape[-1] != how.basis.shape[1]:
            raise MechinterpError(f"{hook} is no residual stream of {how.basis.shape[1]} dimensions to project in")
        identity = isinstance(base, Activations) and base.network.model.output_matrix == "identity"
        if hook.endswith(("hook_v", "hook_z")) and not identity:
            raise MechinterpError(f"{hook}: this model's W_O is its own; project at hook_attn_out instead")
        return old - old @ how.projector.to(old.dtype)
    if how.of_patterns and not hook.endswith("hook_pattern"):
        raise MechinterpError(f"ablation {how.name} is for attention patterns; {hook} is none")
    if how is Ablation.zero:
        return torch.zeros_like(old).masked_fill(old == -torch.inf, -torch.inf)  # the causal mask stays
    if how in (Ablation.mean, Ablation.resample):
        if reference is None:
            raise MechinterpError(f"ablation {how.name} at {hook}: give the activation that it puts in as reference")
        return reference.expand_as(old)
    if how is Ablation.not_previous_token:
        # the small uniform term remains where a row had attended to nothing but the previous token
        n_pos = old.shape[-1]
        allowed = torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
        rest = (old + torch.finfo(old.dtype).tiny * 1e3 * allowed).masked_fill(previous_token_mask(n_pos), 0)
        return rest / rest.sum(dim=-1, keepdim=True)
    assert how.pattern is not None
    if how.pattern.role and how.pattern.role not in batch.roles:
        raise MechinterpError(f"ablation {how.name} needs the role {how.pattern.role!r}, which this task does not have")
    pattern, rows = pattern_of(how.pattern, batch)
    return torch.where(rows[:, None, :, None] > 0, pattern.to(old.dtype)[:, None], old)  # other rows stay


def another_sequence(n: int, seed: int) -> Int[Tensor, "batch"]:
    """For every one of n sequences the index of another one, at random."""
    if n < 2:
        raise MechinterpError("resampling takes two sequences or more")
    shift = generator(seed, Stream.CORRUPTION, 1).integers(1, n, size=n)
    return (torch.arange(n) + torch.from_numpy(shift)) % n


@torch_defaults()
def ablate(
    model: Network | nn.Module,
    batch: Batch,
    where: Site | Sequence[Site] | None = None,
    how: "Ablation | Subspace | str | Iterable[Ablation | Subspace | str]" = tuple(Ablation),
    *,
    metric: Metric | str | MetricFunction = Metric.accuracy,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per site and ablation: the metric before (``intact``) and after (``value``).

    `model` is a network (`run.network(step)`), or a hooked model. Without `where`, the sites are `component_sites`.
    Pattern ablations are left out at other hooks; if `how` has no others, they raise. As the wrong label that a
    metric may need, every sequence has the label after its answer, mod L.
    """
    if not isinstance(batch, Batch):
        raise MechinterpError(f"batch is a {type(batch).__name__}; expected a Batch, as run.task.sample('icl', 100)")
    scored = metric_of(metric)
    listed = [how] if isinstance(how, Ablation | Subspace | str) else how
    ablations = [ablation if isinstance(ablation, Subspace) else member(Ablation, ablation) for ablation in listed]
    values, intact = list[list[Tensor]](), list[Tensor]()
    with torch.no_grad():
        sites = component_sites(activations_of(model)(batch.inputs[:2])) if where is None else sites_of(where)
        rows = [
            (site, ablation)
            for site in sites
            for ablation in [ablation for ablation in ablations if _fits(ablation, site.hook, batch)] or ablations
        ]
        activations = activations_of(model, hooks_to_patch(model, sites) if isinstance(model, Network) else None)
        parts = parts_of(len(batch), model, batch.n_pos)
        hooks = list(dict.fromkeys(site.hook for site in sites))
        means = _means(activations, batch, parts, hooks) if Ablation.mean in ablations else {}
        others = another_sequence(len(batch), seed) if Ablation.resample in ablations else None
        for part in parts:
            some = batch.take(part)
            base, other = activations(some.inputs), None if others is None else activations(batch.inputs[others[part]])
            require_labels(some, base.logits.shape[-1])

            def values_of(logits: Tensor, labels: Tensor = some.labels) -> Tensor:
                return scored.per_sequence(logits, labels, (labels + 1) % logits.shape[-1])

            intact.append(values_of(base.logits))
            values.append([])
            for site, ablation in rows:
                reference = other if ablation is Ablation.resample else means if ablation is Ablation.mean else None
                ablated = substitute(
                    base, site.hook, ablation, some, None if reference is None else reference[site.hook]
                )
                ablated = replaced(base[site.hook], ablated, site, some.roles)
                values[-1].append(values_of(base.forward_from(site.hook, ablated)))
    before = float(torch.cat(intact).mean())
    return pd.DataFrame(
        [
            {**vars(site), "ablation": ablation.name, "intact": before, "value": float(torch.cat(of_parts).mean())}
            for (site, ablation), *of_parts in zip(rows, *values, strict=True)
        ]
    )


def _means(
    activations: Callable[[Tensor], AnyActivations], batch: Batch, parts: list[slice], hooks: list[str]
) -> dict[str, Tensor]:
    """Activations at hooks, mean over sequences."""
    sums = dict[str, Tensor]()
    for rows in parts:
        of_part = activations(batch.inputs[rows])
        for hook in hooks:
            of_hook = of_part[hook].sum(dim=0, keepdim=True)
            sums[hook] = sums[hook] + of_hook if hook in sums else of_hook
    return {hook: total / len(batch) for hook, total in sums.items()}


def component_sites(base: AnyActivations) -> list[Site]:
    """The sites of pattern, value and output of every layer, and of every head where a layer has several; and of the
    output of every MLP."""
    heads: list[int | None] = [None, *range(base.n_heads)] if base.n_heads > 1 else [None]
    found = list[Site]()
    for layer in range(base.n_layers):
        attn, mlp = f"blocks.{layer}.attn", f"blocks.{layer}.hook_mlp_out"
        found += [Site(f"{attn}.hook_{name}", None, head) for name in ("pattern", "v", "z") for head in heads]
        found += [Site(mlp)] if mlp in base.values else []
    return found


def _fits(how: "Ablation | Subspace", hook: str, batch: Batch) -> bool:
    """Whether an ablation applies at a hook on these sequences."""
    if how is Ablation.correct_label and "correct_label" not in batch.roles:
        return False
    return isinstance(how, Subspace) or hook.endswith("hook_pattern") or not how.of_patterns
