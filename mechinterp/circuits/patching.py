"""Activation patching: the effect of replacing an activation of one run by that of another run.

It is the causal mediation analysis of Vig et al. 2020, and with clean activations put into a corrupt run the causal
tracing of Meng et al. 2022. The two runs of a network are on sequences that differ in one respect
(`tasks/corruption.py`). Denoising puts the clean activation into the corrupt run: a site that restores the answer is
sufficient. Noising puts the corrupt activation into the clean run: a site that destroys the answer is necessary. A site
is a hook, the positions of a role, and a head. With a metric m, the normalised effect

    effect = (m(patched) − m(corrupt)) / (m(clean) − m(corrupt))

is 0 if the patched run answers like the corrupt run and 1 if it answers like the clean run; it may leave [0, 1].
Approximations of such effects by gradients are in `attribution`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechinterp.circuits.activations import AnyActivations, activations_of, parts_of
from mechinterp.circuits.attribution import activation_slope, change_between
from mechinterp.circuits.metrics import AnyMetric, Metric, MetricFunction, metric_of
from mechinterp.circuits.standard_errors import standard_error
from mechinterp.errors import MechinterpError, NamedEnum, member, unknown_name
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Activations, hooks_to_go_on
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs, require_pairs
from mechinterp.torch_state import torch_defaults


class Direction(NamedEnum):
    """The run that is patched, and the run that the activation is taken from."""

    denoise = "the corrupt run with the clean activation"
    noise = "the clean run with the corrupt activation"


@dataclass(frozen=True)
class Site:
    """Where an activation is replaced."""

    hook: str
    """A hook name of TransformerLens, or of the classifier."""
    role: str | None = None
    """The positions, by role; None for all. For patterns and scores these are the queries. Of the classifier's
    hooks, and of a normalisation before it, which exist at the target only, the role must be ``target`` or None."""
    head: int | None = None
    """The head; None for all."""


_EFFECTS = ("effect", "attribution", "integrated")
"""Columns in units of the span."""
_RESIDUAL_IN = ("hook_embed", "hook_resid_pre")
"""Hooks of the residual stream that attention reads."""
HOOKS_PER_LAYER = (
    *("hook_resid_pre", "ln1.hook_normalized"),
    *(f"attn.hook_{name}" for name in ("q", "k", "v", "pattern", "z")),
    *("hook_attn_out", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_post", "hook_mlp_out"),
)
"""Hooks whose sites are patched by default, of layers that have them."""


def sites(base: AnyActivations, roles: Iterable[str]) -> list[Site]:
    """Every hook × role: `HOOKS_PER_LAYER` of all layers, and at the target the last normalisation and the classifier.

    Where layers have several heads, a hook with a head axis is also listed for every head alone.
    """
    heads: list[int | None] = [None, *(range(base.n_heads) if base.n_heads > 1 else ())]
    blocks = [f"blocks.{layer}.{hook}" for layer in range(base.n_layers) for hook in HOOKS_PER_LAYER]
    output = [hook for hook in base.values if hook.startswith("classifier.") and not hook.endswith("pre")]
    output = [hook for hook in ("ln_final.hook_normalized",) if hook in base.values] + output
    return [
        Site(hook, role, head)
        for hook in blocks
        if hook in base.values
        for head in (heads if ".attn." in hook else [None])
        for role in roles
    ] + [Site(hook, "target") for hook in output]


def sites_of(where: Site | Sequence[Site]) -> list[Site]:
    """The sites as a list; MechinterpError for anything else."""
    listed = [where] if isinstance(where, Site) else where if isinstance(where, Sequence) else [where]
    for site in listed:
        if not isinstance(site, Site):
            raise MechinterpError(f"where: {site!r} is no Site; give Site(hook, role, head)")
    return list(listed)


def replaced(base: Tensor, source: Tensor, site: Site, roles: Mapping[str, Bool[Tensor, "batch pos"]]) -> Tensor:
    """The activation `base` with `source` put in at a site."""
    if site.role is None and site.head is None:
        return source
    return torch.where(site_mask(base, site, roles), source, base)


def site_mask(activation: Tensor, site: Site, roles: Mapping[str, Bool[Tensor, "batch pos"]]) -> Bool[Tensor, "..."]:
    """The entries of the activation at its hook that a site covers, as a mask that broadcasts to it.

    A role or head that does not exist, or that the hook does not have, raises.
    """
    if site.role is not None and site.role not in roles:
        raise unknown_name("role", site.role, roles)
    at_target = activation.ndim == 2
    if at_target and site.role not in (None, "target"):
        raise MechinterpError(f"{site.hook} exists at the target only; use role 'target', not {site.role!r}")
    by_query = site.hook.endswith(("hook_pattern", "hook_attn_scores"))  # [batch, head, query, key]
    by_head = by_query or site.hook.endswith(tuple(f"hook_{name}" for name in ("q", "k", "rot_q", "rot_k", "v", "z")))
    mask = torch.ones(activation.ndim * (1,), dtype=torch.bool)
    if site.role is not None and not at_target:
        tokens = roles[site.role][:, -activation.shape[2 if by_query else 1] :]  # of a layer, or of the target alone
        mask = tokens[:, None, :, None] if by_query else tokens.view(*tokens.shape, *(activation.ndim - 2) * (1,))
    if site.head is not None:
        axis = 1 if by_query else 2
        if not by_head:
            raise MechinterpError(f"{site.hook} is a sum over heads; leave the head out")
        if not 0 <= site.head < activation.shape[axis]:
            raise unknown_name("head", site.head, range(activation.shape[axis]))
        heads = torch.arange(activation.shape[axis]) == site.head
        mask = mask & heads.view(*(-1 if i == axis else 1 for i in range(activation.ndim)))
    return mask


@torch_defaults()
def patch(
    model: Network | nn.Module,
    pairs: Pairs,
    where: Site | Sequence[Site] | None = None,
    *,
    metric: Metric | str | MetricFunction = Metric.logit_difference,
    direction: Direction | str = Direction.denoise,
    integration_steps: int | None = None,
) -> pd.DataFrame:
    """One row per site, which is patched alone: the metric's ``value`` and the normalised ``effect``.

    `model` is a network (`run.network(step)`), or a hooked model. Without `where`, all `sites`. ``span`` is
    m(clean) − m(corrupt) and ``span_error`` its standard error over pairs; pairs whose targets share a class are taken
    as correlated (`standard_error`), all as independent where the task gives no classes (`Batch.token_classes`). A span
    within two standard errors, as in an untrained network, is noise, and so are the effects (`mask_unresolved`); where
    it is 0 they are not numbers.

    With `integration_steps`, the columns ``attribution`` and ``integrated`` approximate the effect by gradients
    (`attribution`): to first order, and along the line between the two runs, at all sites of a hook together.
    """
    require_pairs(pairs)
    scored, direction = metric_of(metric), member(Direction, direction)
    kinds = {} if integration_steps is None else {"attribution": None, "integrated": integration_steps}
    linear: dict[str, dict[Site, float]] = {kind: {} for kind in kinds}
    chosen: Sequence[Site] = () if where is None else sites_of(where)
    hooks = None if where is None or isinstance(model, nn.Module) else hooks_to_patch(model, chosen)
    values: dict[Site, list[Tensor]] = {}
    clean_logits, corrupt_logits = list[Tensor](), list[Tensor]()
    with torch.no_grad():
        activations = activations_of(model, hooks, target_only=True)
        for part in parts_of(len(pairs.clean), model, pairs.clean.n_pos):
            clean, corrupt = (activations(batch.inputs[part]) for batch in (pairs.clean, pairs.corrupt))
            base, source = (corrupt, clean) if direction is Direction.denoise else (clean, corrupt)
            roles = {name: mask[part] for name, mask in pairs.roles.items()}
            chosen = list(dict.fromkeys(sites(base, roles) if where is None else chosen))
            for batch in (pairs.clean, pairs.corrupt):
                require_labels(batch, clean.logits.shape[-1])
            clean_logits.append(clean.logits)
            corrupt_logits.append(corrupt.logits)
            patches, answers = Patches(base, source, roles), (pairs.answers[part], pairs.wrong_labels[part])
            for site in chosen:
                values.setdefault(site, []).append(scored.per_sequence(patches.logits(site), *answers))
            for hook in dict.fromkeys(site.hook for site in chosen) if kinds else ():
                change = change_between(base[hook], source[hook])
                for kind, n in kinds.items():
                    slope = activation_slope(base, hook, change, scored, answers, n)
                    for site in [site for site in chosen if site.hook == hook]:
                        share = torch.where(site_mask(change, site, roles), change, 0)
                        total = float("nan") if slope is None else float((slope * share).sum())
                        linear[kind][site] = linear[kind].get(site, 0.0) + total / len(pairs.clean)
        low, span, error = clean_corrupt_gap(scored, torch.cat(clean_logits), torch.cat(corrupt_logits), pairs)
        rows = []
        for site in chosen:
            value = float(torch.cat(values[site]).mean())
            unit, unpatched = span or float("nan"), low if direction is Direction.denoise else low + span
            numbers = {"value": value, "effect": (value - low) / unit}
            numbers |= {kind: (unpatched + of_kind[site] - low) / unit for kind, of_kind in linear.items()}
            rows.append({**vars(site), **numbers, "span": span, "span_error": error})
    return pd.DataFrame(rows)


def clean_corrupt_gap(
    metric: AnyMetric, clean: Float[Tensor, "batch n_labels"], corrupt: Float[Tensor, "batch n_labels"], pairs: Pairs
) -> tuple[float, float, float]:
    """m(corrupt), the span m(clean) − m(corrupt), and the standard error of the span (one pair has none)."""
    low = metric.per_sequence(corrupt, pairs.answers, pairs.wrong_labels)
    difference = metric.per_sequence(clean, pairs.answers, pairs.wrong_labels) - low
    return float(low.mean()), float(difference.mean()), standard_error(difference, pairs.target_classes)


def mask_unresolved(table: pd.DataFrame) -> pd.DataFrame:
    """The table with effects only where the span is beyond two standard errors; elsewhere they are not numbers."""
    beyond = table["span"].abs() > 2 * table["span_error"]
    return table.assign(**{name: table[name].where(beyond) for name in _EFFECTS if name in table})


class Patches:
    """The logits of a run with the activation of another run at one site."""

    def __init__(
        self, base: AnyActivations, source: AnyActivations, roles: Mapping[str, Bool[Tensor, "batch pos"]]
    ) -> None:
        self._base, self._source, self._roles = base, source, roles
        self._changed = dict[str, Bool[Tensor, "..."]]()

    def logits(self, site: Site) -> Float[Tensor, "batch n_labels"]:
        """Logits of the run `base` with the activation of `source` put in at a site."""
        base, source = self._base, self._source
        mask = site_mask(base[site.hook], site, self._roles)
        if isinstance(base, Activations) and self._is_same(site.hook, mask):
            return base.logits
        value = torch.where(mask, source[site.hook], base[site.hook])
        if not isinstance(base, Activations) or not site.hook.endswith(_RESIDUAL_IN):
            return base.forward_from(site.hook, value)
        # Where the residual stream is the source's, so are the query, key and value.
        also = {
            name: torch.where(mask[:, -base[hook].shape[1] :, :, None], source[hook], base[hook])
            for name, hook in _reading(site.hook).items()
        }
        return base.forward_from(site.hook, value, also)

    def _is_same(self, hook: str, mask: Bool[Tensor, "..."]) -> bool:
        """Whether the activations of both runs are equal in a site, whose mask is 1 long in the last dimension."""
        if hook not in self._changed:
            self._changed[hook] = (self._base[hook] != self._source[hook]).any(dim=-1, keepdim=True)
        return not bool((self._changed[hook] & mask).any())


def hooks_to_patch(network: Network, where: Iterable[Site]) -> list[str]:
    """The hooks whose activations `Patches` needs at these sites."""
    needed = dict[str, None]()
    for hook in {site.hook: None for site in where}:
        needed |= dict.fromkeys(hooks_to_go_on(network, hook) if hook in network.hook_names else [hook])
        needed |= dict.fromkeys(_reading(hook).values() if hook.endswith(_RESIDUAL_IN) else ())
    return list(needed)


def _reading(hook: str) -> dict[str, str]:
    """The hooks of query, key and value that read the residual stream at a hook, by short name."""
    attn = "blocks.0.attn" if hook == "hook_embed" else hook.replace("hook_resid_pre", "attn")
    return {name: f"{attn}.hook_{name}" for name in "qkv"}
