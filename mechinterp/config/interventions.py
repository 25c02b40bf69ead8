"""Interventions during training, as data: part of a run's config and so of its file.

An intervention is on while start ≤ step < stop, where step s is the update from the state after s updates to the next.
Several interventions on one activation act in the order of the list; a parameter must not be set while another
intervention keeps it from changing. Training loss and accuracy, and so the stop rule, are those under the
interventions.

With a strength s an activation x becomes (1−s)·x + s·(replacement), and gradients pass through the first term. At
strength 0 the run is bit for bit the run without the intervention.
"""

# A section may have as a field or a property what its family declares: sections are frozen.
# pyright: reportIncompatibleVariableOverride=false

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mechinterp.config.model import ModelConfig
from mechinterp.config.section import Family
from mechinterp.config.training import TrainingConfig

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class InterventionConfig(Family):
    """The section of an intervention, which acts on a network from a step of training on."""

    sets_parameters: ClassVar[bool] = False
    """Whether it sets parameters at `start`, which may then be the last step, after which there is no update."""

    start: int = Field(default=0, ge=0)
    """The first step at which it is on."""

    def require_fits(self, model: ModelConfig, training: TrainingConfig) -> None:
        """A step that training does not reach, or a layer or head that the model lacks, raises ValueError."""
        last = training.steps
        if self.start > last or (self.start == last > 0 and not self.sets_parameters):
            raise ValueError(f"interventions: {self.kind} starts at {self.start}, after the last step ({last - 1})")


class Window(InterventionConfig):
    """An intervention that may end before training does."""

    stop: int | None = Field(default=None, ge=0)
    """Step at which it is off again; by default it stays on."""

    @model_validator(mode="after")
    def _stops_after_start(self):
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) is not after start ({self.start}): it would never be on")
        return self

    def is_on(self, step: int) -> bool:
        """Whether it acts on the update from `step` to step + 1."""
        return self.start <= step and (self.stop is None or step < self.stop)


class Fix(Window):
    """Sets parameters to a value at `start` and keeps them there until `stop`."""

    sets_parameters = True
    kind: Literal["fix"] = "fix"
    parameters: Names
    """Names, or patterns with * and ?, as in ``blocks.1.attn.*``."""
    value: float = Field(default=0.0, ge=-1e30, le=1e30)
    """The value of every entry."""


class Freeze(Window):
    """Keeps parameters at their values at `start` until `stop`."""

    kind: Literal["freeze"] = "freeze"
    parameters: Names
    """Names, or patterns with * and ?."""


class Graft(InterventionConfig):
    """Replaces parameters at `start`, once, by those of another run; from there they are trained on."""

    sets_parameters = True
    kind: Literal["graft"] = "graft"
    parameters: Names = ("*",)
    """Names, or patterns with * and ?."""
    run: str
    """The other run's file."""
    step: int = Field(ge=0)
    """The other run's step."""
    digest: str | None = None
    """SHA-256 of the other run's weights at that step: recorded when training starts, required again on replay."""


class ActivationIntervention(Window):
    """An intervention that changes the forward pass."""

    @property
    def acts(self) -> bool:
        """Whether it changes anything."""
        raise NotImplementedError


class Graded(ActivationIntervention):
    """An intervention that replaces an activation, wholly or in part."""

    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    """s: at 0 nothing is replaced, at 1 all."""

    @property
    def acts(self) -> bool:
        return self.strength > 0


class AtHeads(ActivationIntervention):
    """An intervention on the heads of a layer."""

    layer: int = Field(ge=0)
    """The layer, counted from 0."""
    head: int | None = Field(default=None, ge=0)
    """The head, counted from 0; by default all of the layer."""

    def require_fits(self, model: ModelConfig, training: TrainingConfig) -> None:
        super().require_fits(model, training)
        for axis, number, count in (("layer", self.layer, model.n_layers), ("head", self.head or 0, model.n_heads)):
            if number >= count:
                raise ValueError(f"interventions: {self.kind}: {axis} is {number}, expected 0 to {count - 1}")


class Clamp(AtHeads, Graded):
    """Puts a fixed pattern in place of an attention pattern: p ← (1−s)·p + s·c.

    * previous_token: every token attends to the one before it, the first to itself (ILA1 = 1);
    * uniform: every token attends equally to all tokens up to itself;
    * correct_label: the target attends to its correct label, equally to several copies (TILA2 = 1);
    * labels: the target attends equally to all labels of the context (TLA2 = 1);
    * after_same_token: every token attends equally to those that followed it before (prefix matching = 1).

    The last three leave attention as it is in the rows that they do not have: correct_label and labels in those of
    other tokens than the target, and all three where there is no such token.
    """

    kind: Literal["clamp"] = "clamp"
    pattern: Literal["previous_token", "uniform", "correct_label", "labels", "after_same_token"]
    """The pattern c."""


class ScaleHeadOutput(AtHeads, Graded):
    """Scales the outputs of heads: z ← (1−s)·z, which is zero at strength 1."""

    kind: Literal["silence"] = "silence"


class CopyReadout(Graded):
    """Puts a perfect copier in place of the classifier: logit_ℓ ← (1−s)·logit_ℓ + s·ξ Σ_j p_Tj [token j shows ℓ].

    p is the mean over heads of the last layer's pattern, as clamped. With s = 1 the classifier does not
    contribute to the answer and is not trained (weight decay goes on): ξ is not learnt, and there is no slow phase.
    """

    kind: Literal["copy"] = "copy"
    xi: float = Field(default=20.0, gt=0.0, allow_inf_nan=False)
    """ξ, logits per unit of attention; trained networks have about 20."""

    def require_fits(self, model: ModelConfig, training: TrainingConfig) -> None:
        super().require_fits(model, training)
        if model.answers_everywhere:
            raise ValueError("interventions: copy takes the place of a classifier, and this model has none: remove it")


class Temperature(AtHeads):
    """Divides attention scores by a temperature: p = softmax(scores/τ)."""

    kind: Literal["temperature"] = "temperature"
    tau: float = Field(gt=0.0, allow_inf_nan=False)
    """τ: above 1 attention is flatter, below 1 sharper."""

    @property
    def acts(self) -> bool:
        return self.tau != 1
