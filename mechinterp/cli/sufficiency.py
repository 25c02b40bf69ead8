"""The command that follows the circuit of one step over all checkpoints."""

from dataclasses import dataclass

from mechinterp.cli.common import Json, RunPath, Step, print_result
from mechinterp.cli.own_task import OwnTask, own_task
from mechinterp.errors import MechinterpError


@dataclass
class Sufficiency:
    """When does the final circuit become sufficient? Its edges alone, at every checkpoint."""

    run: RunPath
    step: Step = "last"
    """The saved step of whose network the circuit is."""
    level: float = 0.9
    """The faithfulness that the circuit is to reach there."""
    ranking: str = "effect"
    """effect, attribution or integrated: the order in which edges are added to find it."""
    replacement: str = "mean"
    """mean, resample or corrupt: what edges outside of the circuit carry."""
    metric: str = "logit_difference"
    """logit_difference, probability, accuracy or loss."""
    n_pairs: int = 256
    """Pairs of sequences."""
    task: OwnTask = None
    csv: bool = False
    """Print comma-separated values, with all columns."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.analysis.sufficiency import circuit_sufficiency
        from mechinterp.run import open_run

        if self.csv and self.json:
            raise MechinterpError("--csv and --json exclude each other; give one of them")
        found = circuit_sufficiency(
            open_run(self.run, task=own_task(self.task)),
            step=self.step,
            level=self.level,
            ranking=self.ranking,
            replacement=self.replacement,
            metric=self.metric,
            n_pairs=self.n_pairs,
            progress=True,
        )
        shown = ["faithfulness", "completeness", "accuracy", "complement_accuracy", "network_accuracy"]
        table = found.table.to_csv().strip() if self.csv else found.table[shown].round(3).to_string() + f"\n{found}"
        print_result({"run": str(self.run), **found.to_dict()}, self.json, table)
