"""The built-in analyses: functions from a network and its task to a tidy table."""

from typing import Annotated, Any

import pandas as pd

from mechinterp.circuits.ablation import ablate as ablate_sites
from mechinterp.circuits.additive_order_parameters import additive_order_parameters
from mechinterp.circuits.diagram import Heads, Weight, circuit_edges
from mechinterp.circuits.edges import Scale
from mechinterp.circuits.evidence import induction_head_evidence
from mechinterp.circuits.heads import head_roles
from mechinterp.circuits.logits import logit_attribution, logit_lens
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.order_parameters import order_parameters as induction_head_order_parameters
from mechinterp.circuits.patching import Direction
from mechinterp.circuits.patching import patch as patch_sites
from mechinterp.circuits.paths import patch_paths
from mechinterp.circuits.qk_ov import (
    composition_scores,
    copying_score,
    null_band,
    ov_strengths,
    position_profile,
    qk_strengths,
    singular_directions,
)
from mechinterp.errors import NamedEnum
from mechinterp.models.network import Network
from mechinterp.run import Run
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, composition_corruption, corrupted_pairs, corruptions_of
from mechinterp.torch_state import torch_threads

Pairs = Annotated[int, "Clean–corrupt pairs of sequences."]
Sequences = Annotated[int, "Sequences of the first evaluation set."]
Seed = Annotated[int, "Another seed draws other sequences of the same kind."]
CorruptionName = Annotated[Corruption | None, f"{', '.join(Corruption.__members__)}; the default depends on the task."]
MetricName = Annotated[Metric, "logit_difference, probability, accuracy or loss."]
DirectionName = Annotated[Direction, "denoise (clean into corrupt) or noise (corrupt into clean)."]


class Quantity(NamedEnum):
    """The quantity in a row of ``qkov``, with the meaning of the columns ``part`` and ``other``."""

    qk = "strength of a query–key interaction: query part, key part"
    ov = "strength of what is written: read part, written part"
    qk_singular_value = "a singular value of W_Q W_Kᵀ, by index from 1"
    ov_singular_value = "a singular value of W_V W_O, by index from 1"
    composition = "composition score: sender head, and the query, key or value through which this head reads it"
    position_profile = "mean score of a key that lies `index` positions before the query"
    copying = "copying score"


def patch(
    network: Network,
    task: Task,
    *,
    corruption: CorruptionName = None,
    metric: MetricName = Metric.logit_difference,
    direction: DirectionName = Direction.denoise,
    n_pairs: Pairs = 256,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Activation patching at every hook × role: hook, role, head, value, effect.

    By default the target is replaced, or where a task does not have this corruption, its first.
    """
    pairs = corrupted_pairs(task, corruption or _default(task), n_pairs=n_pairs, seed=seed)
    table = patch_sites(network, pairs, metric=metric, direction=direction)
    return table if network.n_heads > 1 else table.drop(columns="head")


def paths(
    network: Network,
    task: Task,
    *,
    corruption: CorruptionName = None,
    metric: MetricName = Metric.logit_difference,
    direction: DirectionName = Direction.denoise,
    scale: Annotated[Scale, "recomputed or frozen: the receiver's normalisation on the patched input."] = (
        Scale.recomputed
    ),
    n_pairs: Pairs = 256,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Path patching of every edge: sender, receiver, value, effect, attribution, by default with `path_corruption`."""
    pairs = corrupted_pairs(task, corruption or path_corruption(task), n_pairs=n_pairs, seed=seed)
    return patch_paths(network, pairs, metric=metric, direction=direction, scale=scale)


def path_corruption(task: Task) -> Corruption:
    """What changes what followed the target's item (`composition_corruption`), or where a task has no such corruption,
    swap_label, or its first one."""
    wanted, known = (composition_corruption(task), Corruption.swap_label), corruptions_of(task)
    return next((corruption for corruption in wanted if corruption in known), _default(task))


def _default(task: Task) -> Corruption:
    """replace_target, or the first corruption of a task that does not have it."""
    known = corruptions_of(task)
    return Corruption.replace_target if Corruption.replace_target in known or not known else known[0]


def ablate(
    network: Network,
    task: Task,
    *,
    metric: MetricName = Metric.accuracy,
    n_sequences: Sequences = 500,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Ablation of every layer's pattern, values and output: hook, ablation, intact, value."""
    table = ablate_sites(network, task.sample(task.evaluations[0], n_sequences, seed), metric=metric, seed=seed)
    return table.drop(columns=["role", *(["head"] if network.n_heads == 1 else [])])


def qkov(network: Network, task: Task, *, n_sequences: Sequences = 200, seed: Seed = 0) -> pd.DataFrame:
    """QK and OV circuits: quantity (`Quantity`), layer, head, part, other, index, value."""
    batch = task.sample(task.evaluations[0], n_sequences, seed)
    rows = block_rows(qk_strengths(network, batch, task)) + block_rows(ov_strengths(network, batch, task))
    for row in singular_directions(network, task).to_dict("records"):
        quantity = Quantity[f"{row['circuit']}_singular_value"]
        rows.append(_row(quantity, row["layer"], row["head"], row["value"], index=row["index"] + 1))
    for row in composition_scores(network).to_dict("records"):
        layer, head = map(int, row["to"].split("."))
        rows.append(_row(Quantity.composition, layer, head, row["score"], row["from"], row["through"]))
    heads = [(layer, head) for layer in range(network.n_layers) for head in range(network.n_heads)]
    for layer, head in heads:
        for offset, value in enumerate(position_profile(network, task, layer, head)):
            rows.append(_row(Quantity.position_profile, layer, head, float(value), index=offset))
    for layer, head in heads:
        if layer:
            score = copying_score(network, task, batch, layer, head)
            rows.append(_row(Quantity.copying, layer, head, score))
    return pd.DataFrame(rows)


def block_rows(strengths: pd.DataFrame, value: str = "strength") -> list[dict[str, Any]]:
    """`qk_strengths` or `ov_strengths` as rows of ``qkov``."""
    quantity, part, other = (Quantity.qk, "query", "key") if "query" in strengths else (Quantity.ov, "read", "written")
    return [
        _row(quantity, row["layer"], row["head"], row[value], row[part], row[other])
        for row in strengths.to_dict("records")
    ]


def _row(
    quantity: Quantity, layer: int, head: int, value: float, part: str = "", other: str = "", index: int = 0
) -> dict[str, Any]:
    place = {"quantity": quantity.name, "layer": layer, "head": head, "part": part, "other": other, "index": index}
    return place | {"value": value}


def null_bands(run: Run, *, n_sequences: int, seed: int = 0) -> pd.DataFrame:
    """The strengths of ``qkov`` in untrained networks: quantity, layer, head, part, other, mean, low, high (95 %)."""
    batch = run.task.sample(run.task.evaluations[0], n_sequences, seed)
    tables = []
    for strengths in (qk_strengths, ov_strengths):
        with torch_threads(1):
            band = null_band(run.network_config, batch, run.task, strengths)
        named = pd.DataFrame(block_rows(band, "null_mean")).rename(columns={"value": "mean"}).drop(columns="index")
        tables.append(named.assign(low=band["null_low"], high=band["null_high"]))
    return pd.concat(tables, ignore_index=True)


def order_parameters(network: Network, task: Task, *, n_sequences: Sequences = 500, seed: Seed = 0) -> pd.DataFrame:
    """The order parameters of a task's theory, with explained variances: parameter, value.

    On item–label sequences β₁, α, β₂ and ξ of the minimal induction head, with their errors and what random weights
    give (``…_error``, ``…_null``); on paired items β, w, c₁, c₂ and c₃.
    """
    separate = task.sample(task.evaluations[0], 1).has_separate_label_tokens
    read_off = induction_head_order_parameters if separate else additive_order_parameters
    values = read_off(network, task, n_sequences=n_sequences, seed=seed)
    return pd.DataFrame({"parameter": list(values), "value": list(values.values())})


def evidence(
    network: Network,
    task: Task,
    *,
    layer: Annotated[int | None, "The layer whose heads are tested, counted from 0; by default the last."] = None,
    n_pairs: Pairs = 256,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Whether it is an induction head: fact, value, holds."""
    return induction_head_evidence(network, task, layer=layer, n_pairs=n_pairs, seed=seed)


def heads(network: Network, task: Task, *, n_pairs: Pairs = 256, seed: Seed = 0) -> pd.DataFrame:
    """The role of every head: layer, head, previous_token, correct_label, alone, needed, role, redundant."""
    return head_roles(network, task, n_pairs=n_pairs, seed=seed)


def logits(
    network: Network, task: Task, *, corruption: CorruptionName = None, n_pairs: Pairs = 256, seed: Seed = 0
) -> pd.DataFrame:
    """Direct logit attribution and logit lens: quantity (direct, lens), name (component or hook), lead, accuracy.

    The corruption says which label is the wrong one, as in ``patch``.
    """
    pairs = corrupted_pairs(task, corruption or _default(task), n_pairs=n_pairs, seed=seed)
    parts = [logit_lens(network, pairs).rename(columns={"hook": "name"}).assign(quantity="lens")]
    if network.model.answers_everywhere or not network.depth:  # a classifier with ReLU layers has the lens alone
        direct = logit_attribution(network, pairs).rename(columns={"component": "name"})
        parts.insert(0, direct.assign(quantity="direct", accuracy=float("nan")))
    table = pd.concat(parts, ignore_index=True)
    return table[["quantity", "name", "lead", "accuracy"]]


def circuit(
    network: Network,
    task: Task,
    *,
    weight: Annotated[Weight, "effect or attention."] = Weight.effect,
    heads: Annotated[Heads, "apart (every head has its own edges) or together (those of a layer at once)."] = (
        Heads.apart
    ),
    n_pairs: Pairs = 256,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Every edge of the circuit diagram: source, target, kind, value, effect, …, weight, drawn, operation."""
    return circuit_edges(network, task, weight=weight, heads=heads, n_pairs=n_pairs, seed=seed)
