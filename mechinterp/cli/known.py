"""What is known of a run without computing: its file, and what earlier commands have left beside it."""

import re
from collections import defaultdict
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from mechinterp.config import RunConfig
from mechinterp.config.dotted import nearest_preset, written
from mechinterp.files import is_being_written, read_sealed_json

if TYPE_CHECKING:
    from mechinterp.store import Trajectory

MOST_CHANGES = 4
"""So many differences from a preset are named in a line."""


def standing(run: "Trajectory") -> str:
    """Where a run stands: complete, being written now, or ended before; one that can go on says so in `info`."""
    if run.status == "running":
        return "being written" if is_being_written(run.path) else "killed"
    return run.status


def trained(config: RunConfig) -> str:
    """What was trained: a preset, or the nearest one and what differs from it; or the kinds of task and network."""
    preset, changed = nearest_preset(config)
    if preset is None:
        return f"{config.task.kind}, {config.model.kind} (no preset has both)"
    if not changed:
        return preset
    named = dict(list(changed.items())[:MOST_CHANGES])
    more = f" and {len(changed) - len(named)} more" if len(changed) > len(named) else ""
    return f"{preset} with {written(named)}{more}"


def task_in_words(config: RunConfig) -> str:
    """The task in a sentence and its sizes."""
    task = config.task
    vocabulary = f", {task.d_vocab} tokens" if task.d_vocab else ""
    return f"{_first_sentence(type(task))}; {task.n_pos} positions{vocabulary}, {task.n_labels} answers"


def network_in_words(config: RunConfig) -> str:
    """The network in a sentence and its sizes."""
    model = config.model
    heads = "1 head" if model.n_heads == 1 else f"{model.n_heads} heads"
    layers = "1 layer" if model.n_layers == 1 else f"{model.n_layers} layers"
    return f"{_first_sentence(type(model))}; {layers} of {heads}"


def _first_sentence(section: type) -> str:
    """The first sentence on a kind of task or network, without the source."""
    sentence = re.split(r"\.(?:\s|$)|;", " ".join(cleandoc(section.__doc__ or "").split()), maxsplit=1)[0]
    return re.sub(r" \([^()]*\d{4}[^()]*$| \([^()]*\d{4}[^()]*\)", "", sentence)


def computed(run: "Trajectory") -> dict[str, Any]:
    """What has been computed from a run: analyses by the number of kept checkpoints, tables, pages, rebuilt steps."""
    analyses = defaultdict[str, set[str]](set)
    for path in sorted(run.path.with_name(f"{run.path.name}.cache").glob("*-*.json")):
        content = read_sealed_json(path)
        if isinstance(content, dict) and "tables" in content:
            analyses[path.name.rpartition("-")[0]].update(content["tables"])
    rebuilt = len(set(run.side_file.steps)) if run.side_file else 0
    beside = {"measures": run.path.with_suffix(".csv"), "report": run.path.with_suffix(".html")}
    found: dict[str, Any] = {name: str(path) for name, path in beside.items() if path.is_file()}
    if rebuilt:
        found |= {"rebuilt": rebuilt, "side_file": str(run.dense_path)}
    return found | {"analyses": {name: len(digests) for name, digests in analyses.items()}}
