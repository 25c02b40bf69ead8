"""Circuit analyses over a whole run: one tidy table, step × site × value, computed once and kept beside the run.

    table = mi.analyse(run, "patch", corruption="replace_target")

An analysis is a function of a model's weights, the task and keyword arguments to a table; `ANALYSES` lists them.
Results are kept in ``RUN.cache/``, by the digest of the weights, the analysis with its code, and its arguments: a
checkpoint is never analysed twice, and one whose weights differ is never mistaken for it.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from mechinterp.circuits.ablation import ablate
from mechinterp.circuits.diagram import THRESHOLD, Weight, checked, circuit_edges, graph_of
from mechinterp.circuits.evidence import induction_head_evidence
from mechinterp.circuits.metrics import Metric
from mechinterp.circuits.order_parameters import order_parameters
from mechinterp.circuits.patching import Direction, patch
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
from mechinterp.circuits.race import coordinates
from mechinterp.circuits.rerun import parameters_of
from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, member, unknown_name
from mechinterp.files import replace_text
from mechinterp.models.conventions import folded, plain
from mechinterp.models.induction_head import as_transformer
from mechinterp.models.transformer import build_model
from mechinterp.store import Run
from mechinterp.tasks.base import Task
from mechinterp.tasks.corruption import Corruption, corrupted_pairs
from mechinterp.tasks.paired_items import PairedItemsTask

Weights = Mapping[str, Tensor]


def _patch(
    config: RunConfig,
    weights: Weights,
    task: Task,
    *,
    corruption: Corruption = Corruption.replace_target,
    metric: Metric = Metric.logit_difference,
    direction: Direction = Direction.denoise,
    n_pairs: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Activation patching at every hook × role: hook, role, head, value, effect."""
    pairs = corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed)
    table = patch(weights, pairs, metric=metric, direction=direction)
    return table if config.model.n_heads > 1 else table.drop(columns="head")


def _paths(
    config: RunConfig,
    weights: Weights,
    task: Task,
    *,
    corruption: Corruption = Corruption.shuffle_positions,
    metric: Metric = Metric.logit_difference,
    direction: Direction = Direction.denoise,
    n_pairs: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Path patching of every edge: sender, receiver, value, effect, attribution."""
    return patch_paths(
        weights, corrupted_pairs(task, corruption, n_pairs=n_pairs, seed=seed), metric=metric, direction=direction
    )


def _ablate(
    config: RunConfig,
    weights: Weights,
    task: Task,
    *,
    metric: Metric = Metric.accuracy,
    n_sequences: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Ablation of every layer's pattern, values and output: hook, ablation, intact, value."""
    table = ablate(weights, task.sample(task.evaluations[0], n_sequences, seed), metric=metric, seed=seed)
    return table.drop(columns=["role", *(["head"] if config.model.n_heads == 1 else [])])


def _qkov(config: RunConfig, weights: Weights, task: Task, *, n_sequences: int = 200, seed: int = 0) -> pd.DataFrame:
    """QK and OV circuits: quantity, part, value. Strengths of the blocks of both, their largest singular values,
    composition and copying scores, and the position–position block by offset."""
    model, batch = build_model(config, weights), task.sample(task.evaluations[0], n_sequences, seed)
    rows = block_rows(qk_strengths(model, batch, task)) + block_rows(ov_strengths(model, batch, task))
    rows += [
        {
            "quantity": f"singular values {each['circuit']} {each['layer']}.{each['head']}",
            "part": f"#{each['index'] + 1}",
            "value": each["value"],
        }
        for each in singular_directions(model, task).to_dict("records")
    ]
    rows += [
        {"quantity": "composition", "part": f"{each['from']}→{each['to']}.{each['through']}", "value": each["score"]}
        for each in composition_scores(model).to_dict("records")
    ]
    for layer in range(config.model.n_layers):
        for head in range(config.model.n_heads):
            profile = position_profile(model, task, layer, head)
            rows += [
                {"quantity": f"position profile {layer}.{head}", "part": f"offset {offset}", "value": float(value)}
                for offset, value in enumerate(profile)
            ]
    for layer in range(1, config.model.n_layers):
        for head in range(config.model.n_heads):
            score = copying_score(model, task, batch, layer, head)
            rows.append({"quantity": "copying", "part": f"{layer}.{head}", "value": score})
    return pd.DataFrame(rows)


def block_rows(strengths: pd.DataFrame, value: str = "strength") -> list[dict[str, Any]]:
    """`qk_strengths` or `ov_strengths` as rows of quantity, part and value."""
    circuit, first, second, joint = (
        ("qk", "query", "key", "–") if "query" in strengths else ("ov", "read", "written", "→")
    )
    return [
        {
            "quantity": f"{circuit} {each['layer']}.{each['head']}",
            "part": f"{each[first]}{joint}{each[second]}",
            "value": each[value],
        }
        for each in strengths.to_dict("records")
    ]


def null_bands(run: Run, *, n_sequences: int, seed: int = 0) -> pd.DataFrame:
    """The strengths of `qkov` in untrained networks: quantity, part, mean, low, high (95 %)."""
    batch, strengths = run.task.sample(run.task.evaluations[0], n_sequences, seed), (qk_strengths, ov_strengths)
    tables = []
    for each in strengths:
        with _one_thread():
            band = null_band(run.config, batch, run.task, each)
        named = pd.DataFrame(block_rows(band, "null_mean")).rename(columns={"value": "mean"})
        tables.append(named.assign(low=band["null_low"], high=band["null_high"]))
    return pd.concat(tables, ignore_index=True)


def _order_parameters(
    config: RunConfig, weights: Weights, task: Task, *, n_sequences: int = 500, seed: int = 0
) -> pd.DataFrame:
    """A network in the coordinates of its task's theory, and what they explain: parameter, value.

    On item–label sequences β₁, α, β₂ and ξ of the minimal induction head, on paired items β, w, c₁, c₂ and c₃.
    """
    if isinstance(task, PairedItemsTask):
        found = coordinates(weights, task, n_sequences=n_sequences, seed=seed)
    else:
        found = order_parameters(build_model(config, weights), task, n_sequences=n_sequences, seed=seed)
    return pd.DataFrame({"parameter": list(found), "value": list(found.values())})


def _evidence(config: RunConfig, weights: Weights, task: Task, *, n_pairs: int = 256, seed: int = 0) -> pd.DataFrame:
    """Whether it is an induction head: fact, value, holds."""
    return induction_head_evidence(weights, task, n_pairs=n_pairs, seed=seed)


def _circuit(
    config: RunConfig,
    weights: Weights,
    task: Task,
    *,
    weight: Weight = Weight.effect,
    n_pairs: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Every edge of the circuit diagram: source, target, kind, value, effect, …, weight, drawn, operation."""
    return circuit_edges(weights, task, weight=weight, n_pairs=n_pairs, seed=seed)


ANALYSES: dict[str, Callable[..., pd.DataFrame]] = {
    "patch": _patch,
    "paths": _paths,
    "ablate": _ablate,
    "qkov": _qkov,
    "order_parameters": _order_parameters,
    "evidence": _evidence,
    "circuit": _circuit,
}
"""Every analysis by name: (config, weights, task, **arguments) → table."""


def analyse(
    run: Run,
    analysis: str,
    *,
    steps: int | Iterable[int] | None = None,
    progress: bool = False,
    keep: bool = True,
    **arguments: Any,
) -> pd.DataFrame:
    """An analysis at every saved step of a run, or at the given ones: its table, with ``step`` as the first column.

    `arguments` are those of the analysis; members of an enum may be given by name. An unknown analysis, argument,
    member or step raises before anything is computed. With `keep`, results are read from and kept in the folder
    ``RUN.cache`` beside the run file.
    """
    if analysis not in ANALYSES:
        raise unknown_name("analysis", analysis, ANALYSES)
    chosen = _arguments(analysis, arguments)
    wanted = run.steps if steps is None else [steps] if isinstance(steps, int) else list(steps)
    digests = [run.digest(step) for step in wanted]
    task = run.task
    held = _Cache(run.path, run.config, analysis, chosen if keep and run.config.task.kind != "custom" else None)
    tables = []
    try:
        for step, digest in tqdm(
            list(zip(wanted, digests, strict=True)), unit="checkpoint", disable=None if progress else True
        ):
            if digest not in held.rows:
                with _one_thread():
                    table = ANALYSES[analysis](*_transformer(run, step), task, **chosen)
                held.add(digest, table.to_dict("list"))
            table = pd.DataFrame(held.rows[digest])
            table.insert(0, "step", step)
            tables.append(table)
    finally:
        held.save()
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def circuit_graphs(
    run: Run,
    *,
    steps: int | Iterable[int] | None = None,
    weight: Weight | str = Weight.effect,
    threshold: float = THRESHOLD,
    **arguments: Any,
) -> dict[int, nx.DiGraph]:
    """The circuit (`diagram.graph_of`) by step, from the kept tables of ``analyse(run, "circuit", …)``."""
    weight, threshold = checked(weight, threshold)
    steps = steps if steps is None or isinstance(steps, int) else dict.fromkeys(steps)
    table = analyse(run, "circuit", steps=steps, **arguments)
    by_step = table.groupby("step", sort=False) if len(table) else ()
    return {int(str(step)): graph_of(rows, weight=weight, threshold=threshold) for step, rows in by_step}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products as small as these are hardly faster on two threads, and ten times slower where another job has a core:
    threads then wait for each other at every one of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _transformer(run: Run, step: int) -> tuple[RunConfig, Weights]:
    """Config and weights that analyses read: of a network of another convention the plain one that computes the same,
    of a minimal induction head the HookedTransformer that it compiles into."""
    if run.config.model.kind == "induction_head":
        return as_transformer(run.config), parameters_of(build_model(run.config, run.weights(step)))
    return plain(run.config), folded(run.config, run.weights(step))


def _arguments(analysis: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword arguments of an analysis: its defaults, and what is given instead."""
    known = {
        name: each.default
        for name, each in inspect.signature(ANALYSES[analysis]).parameters.items()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    }
    chosen = dict(known)
    for name, value in given.items():
        if name not in known:
            raise unknown_name(f"argument of {analysis}", name, known)
        kind = type(known[name])
        if issubclass(kind, Enum):
            value = member(kind, value)
        elif not isinstance(value, int) or isinstance(value, bool):
            raise MechinterpError(f"{name} is {value!r}; expected {kind.__name__}")
        elif value < (least := 0 if name == "seed" else 1):
            raise MechinterpError(f"{name} is {value}; expected {least} or more")
        chosen[name] = value
    return chosen


@cache
def _code() -> str:
    """A digest of the code that results depend on: a changed analysis must not find what the old one left."""
    package, sha = Path(__file__).parents[1], hashlib.sha256()
    for folder in ("circuits", "models", "tasks"):
        for module in sorted((package / folder).glob("*.py")):
            sha.update(module.read_bytes())
    sha.update((package / "randomness.py").read_bytes())
    return sha.hexdigest()[:16]


class _Cache:
    """Tables by the digest of the weights, for one analysis with certain arguments; a JSON file beside the run."""

    def __init__(self, run: Path, config: RunConfig, analysis: str, arguments: Mapping[str, Any] | None):
        """Without `arguments`, nothing is kept."""
        self.rows: dict[str, dict[str, list[Any]]] = {}
        self._path, self._changed = None, False
        if arguments is None:
            return
        named = {name: value.name if isinstance(value, Enum) else value for name, value in arguments.items()}
        made_for = hashlib.sha256(config.canonical_json().encode()).hexdigest()
        self._about = {"code": _code(), "config": made_for, "analysis": analysis, "arguments": named}
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()[:12]
        self._path = run.with_name(run.name + ".cache") / f"{analysis}-{key}.json"
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["about"] == self._about and isinstance(content["tables"], dict):
                self.rows = content["tables"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing there, or damaged: it is computed again and replaced

    def add(self, digest: str, table: dict[str, list[Any]]) -> None:
        self.rows[digest], self._changed = table, True

    def save(self) -> None:
        """Replace the file at once, so that no reader ever sees half of it."""
        if self._path is None or not self._changed:
            return
        with suppress(OSError):  # beside a run that may only be read, nothing is kept
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._path, json.dumps({"about": self._about, "tables": self.rows}))
