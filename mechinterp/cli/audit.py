"""Commands of causal audits: measures held up and removed in training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mechinterp.cli.common import Json, Settings, print_result
from mechinterp.cli.runs import Preset


@dataclass
class Audit:
    """Hold measures up and remove them during training: which are causes of the transition, and which only lead?"""

    settings: Settings
    preset: Preset = "reddy2023-fast"
    """The config to start from."""
    config: Path | None = None
    """A TOML file to start from, instead of a preset."""
    measures: tuple[str, ...] = ()
    """Measures to audit; by default all with manipulations that apply."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; a verdict takes two or more."""
    strengths: tuple[float, ...] = (1 / 3, 2 / 3, 1.0)
    """Strengths, for the whole run."""
    times: tuple[Literal["before", "across", "after"], ...] = ("before", "across", "after")
    """Windows, relative to the transition, at strength 1."""
    outcome: str | None = None
    """The measure whose transition is watched; by default the accuracy on the task's first evaluation set."""
    stop_accuracy: float | None = None
    """Training accuracy at which runs that are manipulated to the end may stop."""
    workers: int | None = None
    """Processes on this machine; by default one for each core."""
    retry: bool = False
    """Try runs again that failed."""
    dry_run: bool = False
    """Do nothing: say which runs would be done, where they would be written, and what they would take, by short
    trials."""
    runs: Path = Path("checkpoints/studies")
    """Folder of the runs, by id; studies and audits may share it."""
    out: Path | None = None
    """Folder of the tables; by default results/audit-NAME."""
    json: Json = False

    def execute(self) -> None:
        import os

        from mechinterp.causes.audit import audit_cost, run_audit
        from mechinterp.causes.design import Audit as Design
        from mechinterp.causes.verdicts import audit_roles
        from mechinterp.files import make_folder, replace_text, require_folder, require_place

        name = self.config.stem if self.config else self.preset
        audit = Design.of(
            self.settings,
            self.measures or None,
            seeds=self.seeds,
            strengths=self.strengths,
            times=self.times,
            outcome=self.outcome,
            stop_accuracy=self.stop_accuracy,
            name=f"audit {name}",
        )
        result: dict[str, Any] = {"measures": list(audit.measures), "outcome": audit.outcome}
        out = self.out or Path("results") / f"audit-{name}"
        if self.dry_run:
            for place in (self.runs, out):
                require_folder(place)
            cost = audit_cost(audit, self.runs)
            lines = [f"{audit.name}: {', '.join(audit.measures)}; seeds {', '.join(map(str, audit.seeds))}"]
            lines += [cost.on(self.workers or os.cpu_count() or 1), "would write:", f"  {self.runs.resolve()}/"]
            print_result(result | asdict(cost), self.json, "\n".join([*lines, f"  {out}/"]))
            return
        make_folder(out)
        paths = {"table": out / "audit.csv", "roles": out / "roles.csv"}
        for path in paths.values():
            require_place(path)
        table = run_audit(audit, self.runs, workers=self.workers, retry=self.retry)
        roles = audit_roles(table)
        replace_text(paths["table"], table.to_csv(index=False, float_format="%.6g"))
        replace_text(paths["roles"], roles.to_csv(float_format="%.6g"))
        brief = table[["measure", "way", "strength", "time", "n_seeds", "ratio", "ratio_low", "ratio_high", "verdict"]]
        lines = [brief.round(3).to_string(index=False), "", roles.round(3).to_string(), f"table: {paths['table']}"]
        result |= {what: str(path) for what, path in paths.items()}
        result |= {"conditions": table.to_dict("records"), "by_measure": roles.reset_index().to_dict("records")}
        print_result(result, self.json, "\n".join(lines))
