"""Activation patching: put an activation of one run into another, and see how far the answer follows.

Two runs of the same network differ in one thing (`tasks/corruption.py`). Denoising puts the clean activation into the
corrupt run: what restores the answer is sufficient. Noising puts the corrupt activation into the clean run: what
destroys it is necessary. A site is a hook, the positions of a role, and a head.

    effect = (m(patched) − m(corrupt)) / (m(clean) − m(corrupt))

is 0 where the patched run answers as the corrupt one and 1 where as the clean one; it may leave [0, 1].
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.rerun import Activations, Parameters, activations, parameters_of, rerun
from mechinterp.errors import MechinterpError, NamedEnum, member, unknown_name
from mechinterp.tasks.corruption import Pairs


class Direction(NamedEnum):
    """Which run is patched with which."""

    denoise = "the corrupt run with the clean activation"
    noise = "the clean run with the corrupt activation"


@dataclass(frozen=True)
class Site:
    """Where an activation is replaced."""

    hook: str
    """A hook name of TransformerLens, or of the classifier."""
    role: str | None = None
    """The positions, by role; None for all. For patterns and scores these are the queries. Of the classifier's
    hooks, which exist at the target only, the role must be ``target`` or None."""
    head: int | None = None
    """The head; None for all."""


_PART = 64
"""Pairs that go through together: their activations stay in cache."""
_BY_QUERY = ("hook_q", "hook_attn_scores", "hook_pattern", "hook_z", "hook_attn_out", "hook_resid_post")
HOOKS_PER_LAYER = (
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_attn_out",
)


def sites(base: Activations, roles: Iterable[str]) -> list[Site]:
    """Every hook × role: `HOOKS_PER_LAYER` of each layer, and the classifier's at the target.

    Where layers have several heads, what belongs to a head is also listed for each head alone.
    """
    heads: list[int | None] = [None, *(range(base.n_heads) if base.n_heads > 1 else ())]
    blocks = [f"blocks.{layer}.{hook}" for layer in range(base.n_layers) for hook in HOOKS_PER_LAYER]
    classifier = [hook for hook in base.values if hook.startswith("classifier.") and not hook.endswith("pre")]
    return [
        Site(hook, role, head) for hook in blocks for head in (heads if ".attn." in hook else [None]) for role in roles
    ] + [Site(hook, "target") for hook in classifier]


def replaced(base: Tensor, source: Tensor, site: Site, roles: Mapping[str, Bool[Tensor, "batch pos"]]) -> Tensor:
    """The activation `base` with `source` put in at a site."""
    mask = site_mask(base, site, roles)
    return torch.where(mask, source, base)


def site_mask(activation: Tensor, site: Site, roles: Mapping[str, Bool[Tensor, "batch pos"]]) -> Bool[Tensor, "..."]:
    """Which entries of the activation at its hook a site covers, as a mask that broadcasts to it.

    A role, head or hook that does not exist, or does not go together, raises.
    """
    if site.role is not None and site.role not in roles:
        raise unknown_name("role", site.role, roles)
    at_target = site.hook.startswith("classifier.")
    if at_target and site.role not in (None, "target"):
        raise MechinterpError(f"{site.hook} exists at the target only; use role 'target', not {site.role!r}")
    by_query = site.hook.endswith(("hook_pattern", "hook_attn_scores"))  # [batch, head, query, key]
    by_head = by_query or site.hook.endswith(("hook_q", "hook_k", "hook_v", "hook_z"))  # [batch, pos, head, …]
    mask = torch.ones(activation.ndim * (1,), dtype=torch.bool)
    if site.role is not None and not at_target:
        positions = roles[site.role]
        mask = (
            positions[:, None, :, None] if by_query else positions.view(*positions.shape, *(activation.ndim - 2) * (1,))
        )
    if site.head is not None:
        axis = 1 if by_query else 2
        if not by_head:
            raise MechinterpError(f"{site.hook} is a sum over heads; leave the head out")
        if not 0 <= site.head < activation.shape[axis]:
            raise unknown_name("head", site.head, range(activation.shape[axis]))
        heads = torch.arange(activation.shape[axis]) == site.head
        mask = mask & heads.view(*(-1 if i == axis else 1 for i in range(activation.ndim)))
    return mask


def patch(
    parameters: Parameters | nn.Module,
    pairs: Pairs,
    where: Sequence[Site] | None = None,
    *,
    metric: Metric | str = Metric.logit_difference,
    direction: Direction | str = Direction.denoise,
) -> pd.DataFrame:
    """Patch every site in turn: one row per site with the metric's ``value`` and the normalised ``effect``.

    `parameters` are a checkpoint's weights (`run.weights(step)`), or a hooked model. Without `where`, all
    `sites`. ``span`` is m(clean) − m(corrupt) and ``span_error`` its standard error over pairs: a span within two of
    them, as in an untrained network, is noise, and so are the effects; where it is 0 they are not numbers.
    """
    metric, direction, parameters = member(Metric, metric), member(Direction, direction), parameters_of(parameters)
    chosen: Sequence[Site] = () if where is None else where
    logits: dict[Site, list[Tensor]] = {}
    totals: dict[str, list[Tensor]] = {"clean": [], "corrupt": []}
    with torch.no_grad():
        for start in range(0, len(pairs.clean), _PART):
            part = slice(start, start + _PART)
            runs = {
                name: activations(parameters, batch.inputs[part])
                for name, batch in (("clean", pairs.clean), ("corrupt", pairs.corrupt))
            }
            names = ("corrupt", "clean") if direction is Direction.denoise else ("clean", "corrupt")
            base, source = (runs[name] for name in names)
            roles = {name: mask[part] for name, mask in pairs.roles.items()}
            chosen = list(dict.fromkeys(sites(base, roles) if where is None else where))
            for name, found in runs.items():
                totals[name].append(found.logits)
            for site in chosen:
                logits.setdefault(site, []).append(patched(base, source, site, roles))
        low, span, error = measured_span(metric, torch.cat(totals["clean"]), torch.cat(totals["corrupt"]), pairs)
        rows = []
        for site in chosen:
            number = float(metric.of(torch.cat(logits[site]), pairs.answers, pairs.foils))
            effect = (number - low) / (span or float("nan"))
            rows.append({**vars(site), "value": number, "effect": effect, "span": span, "span_error": error})
    return pd.DataFrame(rows)


def measured_span(
    metric: Metric, clean: Float[Tensor, "batch n_labels"], corrupt: Float[Tensor, "batch n_labels"], pairs: Pairs
) -> tuple[float, float, float]:
    """m(corrupt), m(clean) − m(corrupt), and the standard error of this difference over pairs (one pair has none)."""
    low = metric.each(corrupt, pairs.answers, pairs.foils)
    difference = metric.each(clean, pairs.answers, pairs.foils) - low
    error = float(difference.std() / len(difference) ** 0.5) if len(difference) > 1 else float("nan")
    return float(low.mean()), float(difference.mean()), error


def resolved(table: pd.DataFrame) -> pd.DataFrame:
    """The table with effects only where the span is beyond two standard errors; elsewhere they are not numbers."""
    beyond = table["span"].abs() > 2 * table["span_error"]
    return table.assign(**{name: table[name].where(beyond) for name in ("effect", "attribution") if name in table})


def patched(
    base: Activations, source: Activations, site: Site, roles: Mapping[str, Bool[Tensor, "batch pos"]]
) -> Float[Tensor, "batch n_labels"]:
    """Logits of the run `base` with the activation of `source` put in at a site."""
    mask = site_mask(base[site.hook], site, roles)
    last = f"blocks.{base.n_layers - 1}."
    if site.hook.startswith(last) and site.hook.endswith(_BY_QUERY) and site.role and not roles[site.role][:, -1].any():
        return base.logits  # of the last layer, only the target's row is read
    value = torch.where(mask, source[site.hook], base[site.hook])
    if not site.hook.endswith(("hook_embed", "hook_resid_pre")):
        return rerun(base, site.hook, value)
    # Where the residual stream is the source's, so are the query, key and value.
    attn = "blocks.0.attn" if site.hook == "hook_embed" else site.hook.replace("hook_resid_pre", "attn")
    mask, names = mask[..., None], {each: f"{attn}.hook_{each}" for each in "qkv"}
    also = {each: torch.where(mask, source[name], base[name]) for each, name in names.items()}
    return rerun(base, site.hook, value, also)
