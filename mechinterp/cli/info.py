"""Commands that say what a run is."""

import json as json_module
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mechinterp.cli.common import Json, RunPath, print_result
from mechinterp.cli.findings import kept_transitions
from mechinterp.cli.known import computed, network_in_words, standing, task_in_words, trained
from mechinterp.config.dotted import written

if TYPE_CHECKING:
    from mechinterp.store import Trajectory

_STANDINGS = {
    "complete": "complete",
    "being written": "growing: it is being written now",
    "killed": "its writer was killed; go on by: mechinterp resume {run}",
    "interrupted": "interrupted; go on by: mechinterp resume {run}",
    "diverged": "diverged: a loss or a weight was not finite; train anew with a lower training.learning_rate",
    "failed": "ended by an error; go on by: mechinterp resume {run}",
}


@dataclass
class Info:
    """Say what a run is: what was trained, where it stands, its transition, and what has been computed from it."""

    run: RunPath
    config: Annotated[bool, tyro.conf.arg(help="Print the config too.")] = False
    digests: Annotated[bool, tyro.conf.arg(help="Print the digest of each checkpoint's weights too.")] = False
    json: Json = False

    def execute(self) -> None:
        from mechinterp.store import Trajectory

        run = Trajectory(self.run)
        lines = [f"{name + ':':15} {text}" for name, text in summary(run).items()]
        facts: dict[str, Any] = {}
        if self.json or self.config:
            config = None if run.origin else json_module.loads(run.config.canonical_json())
            facts["config"] = config
            lines += ["", json_module.dumps(config, indent=2, ensure_ascii=False)]
        if self.json or self.digests:
            digests = run.digests()
            facts |= {"steps": list(digests), "digests": {str(step): digest for step, digest in digests.items()}}
            lines += ["", *(f"step {step:>8,}  {digest}" for step, digest in digests.items())]
        facts |= {
            "run": str(run.path),
            "status": run.status,
            "standing": standing(run),
            "created": run.created,
            "environment": run.environment,
            "origin": run.origin and run.origin.model_dump(mode="json"),
            "trained": None if run.origin else trained(run.config),
            "transitions": [vars(each) for each in kept_transitions(run)],
            "computed": computed(run),
        }
        print_result(facts, self.json, "\n".join(lines))


def summary(run: "Trajectory") -> dict[str, str]:
    """What a person wants to know of a run, by name, each in a line."""
    steps, made = run.steps, run.environment
    saved = f"{len(steps):,} checkpoints, from step {steps[0]:,} to {steps[-1]:,}" if steps else "no checkpoint yet"
    lines = {"run": str(run.path), "status": f"{_stands(run)}; {saved}"}
    if run.origin is not None:
        lines |= _elsewhere(run)
    else:
        config, training = run.config, run.config.training
        rate = f"{training.optimizer}, learning rate {training.learning_rate:g}"
        lines |= {
            "trained": f"{trained(config)}; seed {config.seed}",
            "task": task_in_words(config),
            "network": network_in_words(config),
            "optimisation": f"{training.steps:,} steps of {training.batch_size:,} sequences, {rate}",
        }
        if config.interventions:
            lines["interventions"] = "; ".join(
                f"{each.kind} {written(each.model_dump(exclude={'kind'}, exclude_defaults=True))}"
                for each in config.interventions
            )
    if steps and steps[-1] and (metrics := run.file.metrics_at(run.file.steps[-1])):
        shown = {name: metrics[name] for name in ("train_loss", "train_accuracy") if name in metrics} or metrics
        text = ", ".join(f"{name.replace('train_', 'training ')} {value:.3g}" for name, value in shown.items())
        lines["at the end"] = text
    found = kept_transitions(run)
    lines["transition"] = " | ".join(each.text for each in found) or f"not located yet: mechinterp emergence {run.path}"
    lines["computed"] = _computed(run)
    versions = ", ".join(f"{name} {made[name]}" for name in ("mechinterp", "torch") if made.get(name))
    threads = f", on {made['threads']} {'thread' if made['threads'] == '1' else 'threads'}" if "threads" in made else ""
    engine = f", {made['engine']} engine" if made.get("engine") else ""
    created = run.created[:16].replace("T", " ")
    return lines | {"made": f"begun {created} UTC by {versions}{engine}{threads}"}


def _stands(run: "Trajectory") -> str:
    text = _STANDINGS[standing(run)].format(run=run.path)
    return text if run.origin is None else text.partition("; go on by")[0]


def _elsewhere(run: "Trajectory") -> dict[str, str]:
    """What is known of a run that another program has trained."""
    origin = run.origin
    assert origin is not None
    how = (
        "in a loop of its own, recorded by mi.record" if origin.how == "recorded" else "elsewhere, imported from files"
    )
    network = f"a {origin.network.get('format')}" if origin.network else f"not one that analyses know: {origin.unknown}"
    return {"trained": how, "network": network}


def _computed(run: "Trajectory") -> str:
    """What `computed` finds, in a line."""
    found = computed(run)
    parts = [f"{name} of {n} checkpoint{'s' if n > 1 else ''}" for name, n in found["analyses"].items()]
    parts += [f"{name} in {found[name]}" for name in ("measures", "report") if name in found]
    if "rebuilt" in found:
        parts.append(f"{found['rebuilt']:,} rebuilt steps in {found['side_file']}")
    return ", ".join(parts) or f"nothing yet: mechinterp report {run.path}"
