"""The command that follows the geometry of the loss over all checkpoints."""

from dataclasses import dataclass

from mechinterp.cli.common import Json, RunPath, print_result, require_one_form
from mechinterp.cli.own_task import OwnTask, own_task


@dataclass
class Geometry:
    """Gradients, their noise, the Hessian and update norms at every checkpoint: does the loss change its shape?"""

    run: RunPath
    steps: tuple[int, ...] = ()
    """Saved steps; by default all."""
    n_sequences: int = 512
    """Sequences of the training distribution; 32 or more."""
    eigenvalues: int = 2
    """The number of largest eigenvalues of the Hessian."""
    components: bool = False
    """A row for every component of the network, instead of one for all parameters."""
    task: OwnTask = None
    csv: bool = False
    """Print comma-separated values, with standard errors."""
    json: Json = False

    def execute(self) -> None:
        from mechinterp.geometry.over_training import training_geometry
        from mechinterp.run import open_run

        require_one_form(self.csv, self.json)
        found = training_geometry(
            open_run(self.run, task=own_task(self.task)),
            self.steps or None,
            n_sequences=self.n_sequences,
            eigenvalues=self.eigenvalues,
            progress=True,
        )
        table = found.components.set_index("step") if self.components else found.table
        shown = table[[name for name in table if not str(name).endswith(("_error", "_relative", "_residual"))]]
        text = table.to_csv().strip() if self.csv else f"{shown.to_string(float_format='{:.4g}'.format)}\n{found}"
        print_result({"run": str(self.run), **found.to_dict()}, self.json, text)
