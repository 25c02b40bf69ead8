"""Runs: opening them, and the network at any of their steps.

A run can be opened while it is being written. What replays, exports or recognises networks takes time to import, and is
imported by the methods that use it.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from mechinterp.config import CustomTaskConfig, RunConfig
from mechinterp.display import facts_table, run_facts
from mechinterp.errors import ConfigError, MechinterpError, RunFileError, UnrecognisedNetwork, require_integer
from mechinterp.files import require_path
from mechinterp.interventions.forward import forward_interventions
from mechinterp.models.network import Network
from mechinterp.store import Origin, RunFile, Trajectory
from mechinterp.tasks import Task, build_task
from mechinterp.tasks.base import require_task
from mechinterp.tasks.registry import config_of_task
from mechinterp.torch_state import torch_defaults, unwrapped

if TYPE_CHECKING:
    from mechinterp.emergence import Emergence
    from mechinterp.models.foreign import ForeignNetwork
    from mechinterp.models.hooked import HookedNetwork
    from mechinterp.training.replay import Keep, ReplayCheck


class ApproximateReplayWarning(UserWarning):
    """Warning that a step was rebuilt, but not bit for bit."""


class Run(Trajectory):
    """A trajectory with its task, and the network at any step up to the last saved one."""

    def __init__(self, path: str | Path, *, task: Task | None = None):
        super().__init__(path)
        self.file.require_network()
        if task is not None:
            require_task(task)
            _require_same_task(self, task)
        self._task = task

    @property
    def network_config(self) -> RunConfig:
        """The config of the run's network: shapes, and what it computes."""
        return self.config

    @property
    def can_be_analysed(self) -> bool:
        """Whether circuit analyses and the measures of a task apply: it has a task and a `Network`."""
        return True

    @property
    def why_not_analysed(self) -> str:
        """Why they do not apply, if they do not."""
        return ""

    @property
    def has_clamps(self) -> bool:
        """Whether interventions of training changed activations."""
        return bool(forward_interventions(self.config))

    @property
    def task(self) -> Task:
        """The task that the run was trained on."""
        if self._task is None:
            try:
                self._task = build_task(self.config)
            except ConfigError as error:
                raise ConfigError(f"{self.path}: {error}") from None
        return self._task

    @torch_defaults()
    def network(self, step: int | str) -> Network:
        """The canonical network at any step (`numbered`): read if it is stored, else rebuilt by replaying the training.

        The replay continues to the next saved checkpoint and compares digests. If they differ (another machine, or
        another build of torch) an ApproximateReplayWarning tells the deviation.
        """
        step = self.numbered(step)
        if step in self.steps:
            return Network(self.config, self.weights(step))
        rebuilt: dict[int, dict[str, Tensor]] = {}
        check = replay(self, [step], lambda at, weights, metrics: rebuilt.update({at: weights}))
        if not check.exact:
            warnings.warn(f"{self.path}: step {step} is {check}", ApproximateReplayWarning, stacklevel=2)
        return Network(self.config, rebuilt[step])

    @torch_defaults()
    def model(self, step: int | str) -> "HookedNetwork":
        """The hooked view of `network` at any step, in TransformerLens."""
        from mechinterp.models.hooked import HookedNetwork  # imports TransformerLens, which takes seconds

        return HookedNetwork(self.network(step))

    @torch_defaults()
    def densify(
        self,
        *,
        around: "Emergence | None" = None,
        start: int | str | None = None,
        stop: int | str | None = None,
        every: int = 10,
        progress: bool = False,
    ) -> "ReplayCheck":
        """Rebuild every `every`-th step of an interval and keep them in the side file; returns the replay's check.

        The interval is `start` to `stop` (both included, by default the whole run), or one 10–90 % width to either
        side of a located transition (`around`). The rebuilt steps are then among `steps`.
        """
        from mechinterp.training.replay import densify

        saved = self.file.steps
        if around is not None:
            if not hasattr(around, "width"):
                raise MechinterpError(f"around is a {type(around).__name__}; expected what mi.locate_emergence gives")
            if around.step is None or around.width is None:
                raise MechinterpError(f"{self.path}: there is no transition to densify around ({around.reason})")
            start, stop = int(around.step - around.width), int(around.step + around.width)
            start, stop = max(start, saved[0]), min(stop, saved[-1])
        start, stop = (
            self.numbered("first" if start is None else start),
            self.numbered("last" if stop is None else stop),
        )
        if require_integer("every", every, 0) < 1 or not saved[0] <= start <= stop <= saved[-1]:
            raise MechinterpError(
                f"{self.path}: cannot rebuild steps {start} to {stop} every {every}; use a stretch within"
                f" {saved[0]} to {saved[-1]} and every at least 1"
            )
        check = densify(self, self.task, range(start, stop + 1, every), progress=progress)
        self.open_side_file()
        return check

    def export(
        self,
        steps: int | str | Sequence[int | str] | None,
        path: str | Path,
        *,
        format: str | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """The paths of checkpoints written in another program's format; see `exchange.export`."""
        from mechinterp.exchange.export import export

        return export(self, steps, path, format=format, overwrite=overwrite)

    def __repr__(self) -> str:
        steps = self.steps
        return f"Run({str(self.path)!r}, {self.status}, {len(steps)} steps up to {steps[-1] if steps else None})"

    def _repr_html_(self) -> str:
        return facts_table(f"Run {self.path.name}", run_facts(self))


class RecordedRun(Run):
    """A trajectory that was trained elsewhere: recorded in a loop of its own, or imported from checkpoints.

    It has the saved steps only. A `task` and a network that is known (`models.foreign`) let all analyses apply.
    """

    def __init__(self, path: str | Path, *, task: Task | None = None, build: Callable[[], nn.Module] | None = None):
        self._build, self._built = build, None
        self._foreign: ForeignNetwork | UnrecognisedNetwork | None = None
        super().__init__(path, task=task)

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        origin = self.file.origin
        assert origin is not None
        return origin

    @property
    def network_config(self) -> RunConfig:
        return self._foreign_network().config

    @property
    def can_be_analysed(self) -> bool:
        return not self.why_not_analysed

    @property
    def why_not_analysed(self) -> str:
        try:
            _ = self._foreign_network(), self.task
        except MechinterpError as error:
            return str(error).removeprefix(f"{self.path}: ")
        return ""

    @property
    def has_clamps(self) -> bool:
        return False

    @property
    def task(self) -> Task:
        """The task that `open_run` was given."""
        if self._task is None:
            raise RunFileError(
                f"{self.path}: was trained elsewhere, and has no task; give one: mi.open_run(path, task=your_task)"
            )
        return self._task

    @torch_defaults()
    def network(self, step: int | str) -> Network:
        """The network at a saved step; UnrecognisedNetwork, with the reason, unless it is one that is known."""
        return Network(self.network_config, self._foreign_network().parameters(self.weights(step)))

    def model(self, step: int | str) -> Any:
        """What `build` makes, with the weights of a saved step and in evaluation mode; without `build`, the
        HookedTransformer view of `network`."""
        if self._build is None:
            try:
                return super().model(step)
            except UnrecognisedNetwork as error:
                raise UnrecognisedNetwork(
                    f"{error}; of others, give mi.open_run a build that makes the module"
                ) from None
        from mechinterp.exchange.modules import load_weights

        module = self._build()
        if not isinstance(module, nn.Module):
            raise MechinterpError(f"build returns a {type(module).__name__}; expected the torch.nn.Module recorded")
        if self._built is not None and self._built() is module:
            raise MechinterpError(f"{self.path}: build returns the same module again; let it make a new one")
        load_weights(module, self.weights(step), self.origin.left_out, str(self.path))
        self._built = weakref.ref(module)
        return module.eval()

    def densify(self, **options: Any) -> "ReplayCheck":
        """RunFileError: a run that was trained elsewhere cannot be replayed."""
        raise RunFileError(f"{self.path}: was trained elsewhere: steps between its checkpoints cannot be rebuilt")

    def _foreign_network(self) -> "ForeignNetwork":
        """The network that the file names, which computes what the module of `build` does, if there is one.

        It is recognised, or refused, once: the comparison with the module takes forward passes.
        """
        if self._foreign is None:
            try:
                self._foreign = self._recognised()
            except UnrecognisedNetwork as error:
                self._foreign = error
        if isinstance(self._foreign, UnrecognisedNetwork):
            raise self._foreign
        return self._foreign

    def _recognised(self) -> "ForeignNetwork":
        """The network, recognised anew; UnrecognisedNetwork, with the reason, if it is none that is known."""
        from mechinterp.models.foreign import ForeignNetwork, require_same_answers

        origin = self.origin
        if origin.network is None:
            why = origin.unknown or "its file does not say what it computes"
            raise UnrecognisedNetwork(f"{self.path}: its network is none that circuit analyses know: {why}")
        try:
            known, last = ForeignNetwork.from_json(origin.network), self.steps[-1]
        except MechinterpError as error:
            raise RunFileError(f"{self.path}: {error}") from None
        if self._build is not None:
            network = Network(known.config, known.parameters(self.weights(last)))
            require_same_answers(network, unwrapped(self.model(last)))
        return known


@overload
def open_run(path: str | Path, *, task: Task | None = None) -> Run: ...
@overload
def open_run(path: str | Path, *, task: Task | None = None, build: Callable[[], nn.Module]) -> RecordedRun: ...
def open_run(path: str | Path, *, task: Task | None = None, build: Callable[[], nn.Module] | None = None) -> Run:
    """The run of a file, also while it is being written. A run on a custom task needs that `task`.

    Of a run that was trained elsewhere (`mi.record`, `mi.import_checkpoints`), `build` makes the module whose weights
    are stored, and `task` is that of the sequences to analyse it on.
    """
    if RunFile(require_path(path)).origin is not None:
        return RecordedRun(path, task=task, build=build)
    if build is not None:
        raise MechinterpError(f"{path}: was trained by this package, and needs no build; leave it out")
    return Run(path, task=task)


def open_runs(paths: Sequence[Path], *, task: Task | None = None) -> dict[str, Run]:
    """The runs, by file name (by path where names repeat); at least one is needed, and none twice."""
    if not paths:
        raise MechinterpError("name at least one run file")
    if again := [path for path in paths if [each.resolve() for each in paths].count(path.resolve()) > 1]:
        raise MechinterpError(f"{again[0]}: is named twice; name every run once")
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.with_suffix("")).replace("/", "-") for path in paths]
    runs = {name: open_run(path, task=task) for name, path in zip(names, paths, strict=True)}
    return runs


@torch_defaults()
def replay(run: Run, steps: int | str | Iterable[int | str], keep: "Keep", *, progress: bool = False) -> "ReplayCheck":
    """Rebuild steps of a run and pass them to `keep`; see `training.replay.replay_steps`."""
    from mechinterp.training.replay import replay_steps

    require_run(run)
    _ = run.config  # raises for a run that was trained elsewhere
    return replay_steps(run, run.task, run.chosen_steps(steps), keep, progress=progress)


def require_run(run: object) -> None:
    """MechinterpError for what is no run, such as the path of one."""
    if not isinstance(run, Run):
        raise MechinterpError(f"expected a run (mi.open_run), got a {type(run).__name__}")


def _require_same_task(run: Run, task: Task) -> None:
    """RunFileError if a run was trained on another task; of a custom one, the file has the name and shape only."""
    if run.origin is not None:
        _require_task_fits(run, task)
        return
    ours = {name: getattr(run.config.task, name) for name in ("d_model", "n_pos", "n_labels")}
    theirs = {name: getattr(task, name) for name in ours}
    if ours != theirs:
        had, has = (", ".join(f"{name} = {n}" for name, n in shape.items()) for shape in (ours, theirs))
        raise RunFileError(f"{run.path}: the run was trained on a task with {had}, and the given one has {has}")
    if not isinstance(run.config.task, CustomTaskConfig) and config_of_task(task, run.config) != run.config:
        raise RunFileError(f"{run.path}: the given task is not the one of the run's config; leave `task` out")


def _require_task_fits(run: Run, task: Task) -> None:
    """RunFileError if a network that was trained elsewhere cannot take a task's sequences."""
    try:
        theirs = run.network_config.task
    except UnrecognisedNetwork:
        return  # the module of `build` takes what it takes
    for name in ("d_model", "d_vocab", "n_labels", "n_pos"):
        needed, there = getattr(task, name, 0), getattr(theirs, name)
        if needed > there if name == "n_pos" else needed != there:
            raise RunFileError(f"{run.path}: its network has {name} = {there}, the given task has {needed}")
