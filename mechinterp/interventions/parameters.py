"""Interventions on parameters: fix, freeze and graft, between the updates of an engine.

The state after s updates includes the interventions that start at s.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from mechinterp.config import Fix, Freeze, Graft, RunConfig
from mechinterp.errors import ConfigError, unknown_name
from mechinterp.models.registry import parameter_shapes
from mechinterp.store import Trajectory


def pin_graft_digests(config: RunConfig) -> RunConfig:
    """The config with the digests of the weights that grafts take, after all checks.

    It raises for an unknown parameter; for a run that lacks the step, or whose weights differ from a digest in the
    config or in shape; and for a parameter that is set twice at a step, or while another intervention fixes it.
    """
    parameters, interventions = ParameterInterventions(config), []
    parameters.require_consistent()
    for intervention in config.interventions:
        if isinstance(intervention, Graft):
            intervention = intervention.model_copy(update={"digest": _source_digest(intervention)})
            _require_same_shapes(intervention, parameters.matching(intervention), config)
        interventions.append(intervention)
    return config.model_copy(update={"interventions": tuple(interventions)})


class ParameterInterventions:
    """The interventions of a run that set parameters or keep them from changing."""

    def __init__(self, config: RunConfig):
        self._names = list(parameter_shapes(config))
        fixes = [(fix, self.matching(fix)) for fix in config.interventions if isinstance(fix, Fix)]
        freezes = [(freeze, self.matching(freeze)) for freeze in config.interventions if isinstance(freeze, Freeze)]
        self._grafts = [(graft, self.matching(graft)) for graft in config.interventions if isinstance(graft, Graft)]
        self._fixes, self._freezing = fixes, [*fixes, *freezes]

    def apply_scheduled(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Set, in place, the parameters whose fix or graft starts at `step`; idempotent."""
        with torch.no_grad():
            for graft, names in self._grafts:
                if graft.start == step:
                    _source_digest(graft)
                    source = Trajectory(graft.run).weights(graft.step)
                    for name in names:
                        parameters[name].copy_(source[name])
            for fix, names in self._fixes:
                if fix.start == step:
                    for name in names:
                        parameters[name].fill_(fix.value)

    @contextmanager
    def frozen_during_step(self, step: int, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Context of the update from `step`, after which fixed and frozen parameters have the same bits as before."""
        frozen = [name for intervention, names in self._freezing if intervention.is_on(step) for name in names]
        before = {name: parameters[name].detach().clone() for name in frozen}
        yield
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)

    def require_consistent(self) -> None:
        """ConfigError if a parameter is set twice at a step, or while another intervention fixes or freezes it."""
        sets = [(setter, name) for setter, names in [*self._grafts, *self._fixes] for name in names]
        freezes = [(holder, name) for holder, names in self._freezing for name in names]
        for number, (setter, name) in enumerate(sets):
            for other, same in sets[:number]:
                if name == same and setter.start == other.start:
                    raise ConfigError(f"interventions: {name} is set twice at step {setter.start}; remove one")
            for holder, same in freezes:
                if name == same and holder.start < setter.start and (holder.stop is None or setter.start < holder.stop):
                    raise ConfigError(
                        f"interventions: {setter.kind} sets {name} at step {setter.start}, while {holder.kind} holds it"
                        f" from {holder.start} on; let that stop at {setter.start}"
                    )

    def matching(self, intervention: Fix | Freeze | Graft) -> list[str]:
        """The parameters that an intervention names."""
        matches = []
        for pattern in intervention.parameters:
            names = [name for name in self._names if fnmatchcase(name, pattern)]
            if not names:
                raise ConfigError(
                    f"interventions: {intervention.kind}: {unknown_name('parameter', pattern, self._names)}"
                )
            matches += names
        return matches


def _require_same_shapes(graft: Graft, names: list[str], config: RunConfig) -> None:
    theirs, ours = parameter_shapes(Trajectory(graft.run).config), parameter_shapes(config)
    for name in names:
        if theirs.get(name) != ours[name]:
            difference = f"is {list(theirs[name])}" if name in theirs else "does not exist"
            raise ConfigError(f"{graft.run}: its {name} {difference}, to graft it takes {list(ours[name])}")


def _source_digest(graft: Graft) -> str:
    """The digest of the weights to graft. It must equal the digest in the config, where there is one."""
    digest = Trajectory(graft.run).digest(graft.step)
    if graft.digest not in (None, digest):
        raise ConfigError(
            f"{graft.run}: its weights at step {graft.step} are not those that were grafted (their digest is"
            f" {digest[:12]}…, noted was {str(graft.digest)[:12]}…); restore the run that was used"
        )
    return digest
