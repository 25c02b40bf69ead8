"""What a notebook shows of an object: small parts of HTML.

They have no colours of their own, so that they are read on a light and on a dark page, and request nothing. All text is
escaped.
"""

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from mechinterp.errors import printable

if TYPE_CHECKING:
    from mechinterp.store import Trajectory

_LEFT = 'style="text-align:left"'


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """A table of two columns under a title: the name of every fact, and what it is."""
    rows = "".join(
        f"<tr><th {_LEFT}>{escape(name)}</th><td {_LEFT}>{escape(printable(str(fact)))}</td></tr>"
        for name, fact in facts.items()
    )
    caption = f'<caption style="caption-side:top;text-align:left">{escape(printable(title))}</caption>'
    return f"<table>{caption}{rows}</table>"


def drawing(svg: str) -> str:
    """An SVG document as a part of the page, which scrolls where there is no room for it."""
    return f'<div style="overflow-x:auto">{svg}</div>'


def framed_page(page: str, height: int = 720) -> str:
    """A whole HTML page in a frame. Its scripts run apart from the notebook, whose content they cannot reach."""
    return (
        f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts allow-downloads" loading="lazy"'
        f' style="width:100%;height:{height}px;border:1px solid currentColor" title="report"></iframe>'
    )


def run_facts(run: "Trajectory") -> dict[str, str]:
    """What a run is and how far it has come, by name."""
    steps = run.steps
    if run.origin is not None:
        return _facts_of_elsewhere(run)
    config = run.config
    task, model, training = config.task, config.model, config.training
    facts = {
        "file": str(run.path),
        "status": run.status,
        "saved steps": f"{len(steps):,}, from {steps[0]:,} to {steps[-1]:,}" if steps else "none",
        "task": f"{task.kind}: {task.n_pos} tokens, {task.n_labels} labels",
        "network": f"{model.kind}: layers: {model.n_layers}, heads in a layer: {model.n_heads}",
        "training": f"{training.optimizer}, learning rate {training.learning_rate:g}, batches of {training.batch_size},"
        f" seed {config.seed}",
    }
    if config.interventions:
        facts["interventions"] = ", ".join(intervention.kind for intervention in config.interventions)
    if steps and (metrics := run.file.metrics_at(run.file.steps[-1])).get("train_loss") is not None and steps[-1]:
        facts["at the end"] = f"training loss {metrics['train_loss']:.3g}, accuracy {metrics['train_accuracy']:.3f}"
    made = (
        f"{name} {run.environment[name]}" for name in ("mechinterp", "torch", "engine") if run.environment.get(name)
    )
    return facts | {"made by": ", ".join(made)}


def _facts_of_elsewhere(run: "Trajectory") -> dict[str, str]:
    """What a run is that this package has not trained."""
    origin, steps = run.origin, run.steps
    assert origin is not None
    last = run.file.metrics_at(run.file.steps[-1])
    weights = run.file.header.contents.weights
    return {
        "file": str(run.path),
        "status": run.status,
        "saved steps": f"{len(steps):,}, from {steps[0]:,} to {steps[-1]:,}",
        "training": f"elsewhere; {origin.how} here",
        "network": str(origin.network.get("format")) if origin.network else f"unknown: {origin.unknown}",
        "weights": f"{sum(math.prod(array.shape) for array in weights.values()):,} numbers in {len(weights)} tensors",
    } | ({"at the end": ", ".join(f"{name} {value:.3g}" for name, value in last.items())} if last else {})
