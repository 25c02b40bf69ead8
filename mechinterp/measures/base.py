"""Progress measures: the observations that they take, and their registry.

A measure is a function from an `Observation` (a model seen on one evaluation set) to a number. To add one:

    @mi.register(hooks=["blocks.1.attn.hook_pattern"])
    def target_to_itself(seen):
        return seen.pattern(1)[..., -1, -1].mean()

`mi.measure(run)` then has a column of that name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.config.model import MOST_LAYERS, TransformerConfig
from mechinterp.errors import MechinterpError, NamedEnum, unknown_name
from mechinterp.measures.manipulations import Manipulations
from mechinterp.models.network import Network, hook_names
from mechinterp.tasks.base import Batch, Task
from mechinterp.training.spikes import SPIKES


@dataclass(frozen=True)
class Observation:
    """A model seen on sequences of one evaluation set."""

    batch: Batch
    """The sequences, their labels and roles."""
    logits: Float[Tensor, "batch n_labels"]
    """The model's answers."""
    cache: Mapping[str, Tensor]
    """The activations at the hooks that the measure asked for."""
    network: Network | None = None
    """The network, for measures of what it computes otherwise; None for a model that is not a `Network`."""
    task: Task | None = None
    """The task of the sequences, for measures of one task; None where it is not known."""

    def pattern(self, layer: int) -> Float[Tensor, "batch head query key"]:
        """The attention pattern of a layer, counted from 0: rows sum to 1. The measure must ask for its hook."""
        hook = f"blocks.{layer}.attn.hook_pattern"
        if hook not in self.cache:
            raise MechinterpError(f"{hook} was not asked for; register the measure with hooks=[{hook!r}]")
        return self.cache[hook]

    def target_attention(self, layer: int, role: str) -> Float[Tensor, ""]:
        """Attention from the target to the positions of a role, mean over sequences; the largest of a layer's heads."""
        from_target = self.pattern(layer)[:, :, -1]
        return (from_target * self.role(role)[:, None]).sum(dim=-1).mean(dim=0).max()

    def role(self, name: str) -> Bool[Tensor, "batch pos"]:
        """The positions of a role, as a mask."""
        return self.batch.roles[name]


class Requirement(NamedEnum):
    """A property of a task's sequences without which a measure is meaningless."""

    separate_label_tokens = (
        "whose labels are separate tokens; on this one, whose tokens show an item with its label, take tca1"
    )

    tokens = "whose sequences are of tokens, not of vectors"

    def holds(self, batch: Batch) -> bool:
        """Whether the sequences of a batch have the property."""
        return batch.has_separate_label_tokens if self is Requirement.separate_label_tokens else batch.inputs.ndim == 2


@dataclass(frozen=True)
class Measure:
    """A registered measure, with its requirements."""

    name: str
    compute: Callable[[Observation], Tensor | float]
    hooks: tuple[str, ...]
    roles: tuple[str, ...]
    requires: tuple[Requirement, ...]
    each_evaluation: bool
    evaluation: str | None
    task: type | None
    manipulations: Manipulations | None = None

    def unmet(self, task: Task, batch: Batch) -> str | None:
        """The first requirement that a task, or its sequences, do not meet, in words."""
        if self.task is not None and not isinstance(task, self.task):
            return f"of the class {self.task.__name__}"
        return next((requirement.value for requirement in self.requires if not requirement.holds(batch)), None)


_HOOKS = {
    hook
    for parts in (
        {"classifier_depth": MOST_LAYERS, "d_mlp": 1, "normalization_type": "LN"},
        {"output": "unembedding", "positional_embedding_type": "rotary"},
        {"positional_embedding_type": "standard"},
    )
    for hook in hook_names(TransformerConfig.model_validate({"n_layers": MOST_LAYERS, **parts}))
}
"""The hooks of networks with all parts; a measure is left out for a network that lacks one."""
MEASURES: dict[str, Measure] = {}
"""Every measure, by name."""


def register(
    function: Callable[[Observation], Tensor | float] | None = None,
    /,
    *,
    hooks: Sequence[str] = (),
    roles: Sequence[str] = (),
    requires: Sequence[Requirement] = (),
    each_evaluation: bool = False,
    evaluation: str | None = None,
    task: type | None = None,
    manipulations: Manipulations | None = None,
) -> Callable[..., Any]:
    """A decorator that adds a function to the measures, under the function's name.

    `hooks` are the activations and `roles` the positions that it reads, `requires` further properties of the task, and
    `task` the class, or runtime-checkable protocol, of the tasks for which it is defined; where one is missing, the
    measure has no column. It is taken on the task's first evaluation set or the one that
    `evaluation` names, or with `each_evaluation` on all of them; its columns are then called ``{evaluation}_{name}``.
    `manipulations` say how training holds the measure up and how it removes it, for causal audits (`causes.audit`).
    """

    for argument, names in (("hooks", hooks), ("roles", roles)):
        if isinstance(names, str):
            raise MechinterpError(f"{argument} = {names!r}; give a list, [{names!r}]")
    for hook in hooks:
        if hook not in _HOOKS:
            raise unknown_name("hook", hook, _HOOKS)

    def add(compute: Callable[[Observation], Tensor | float]) -> Callable[[Observation], Tensor | float]:
        name = getattr(compute, "__name__", "")
        if not name.isidentifier():
            raise MechinterpError(f"a measure is a function with a name (def), which its column gets, not {compute!r}")
        if name.startswith("clamped_"):
            raise MechinterpError(f"{name}: clamped_ is the prefix of measures under clamps; choose another name")
        if name in SPIKES:
            raise MechinterpError(f"{name} is the name of a column of loss spikes; choose another name")
        if name in MEASURES and MEASURES[name].compute.__module__ != compute.__module__:
            raise MechinterpError(f"a measure named {name!r} exists already; choose another name")
        MEASURES[name] = Measure(
            name,
            compute,
            tuple(hooks),
            tuple(roles),
            tuple(requires),
            each_evaluation,
            evaluation,
            task,
            manipulations,
        )
        return compute

    return add if function is None else add(function)


def unregister(name: str) -> None:
    """Remove a measure that was registered in this session; tables then have its column no more.

    An unknown name raises, and so does a built-in measure, which other runs of the session need.
    """
    if name not in MEASURES:
        raise unknown_name("measure", name, MEASURES)
    if MEASURES[name].compute.__module__.startswith(f"{__package__}."):
        raise MechinterpError(f"{name} is a built-in measure; to leave it out, name those to measure")
    del MEASURES[name]
