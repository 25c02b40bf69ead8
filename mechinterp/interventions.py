"""Interventions during training, as data: part of a run's config and so of its file. `training.interventions` acts.

Each is on while start ≤ step < stop, where step s is the update from the state after s updates to the next. Several act
together, on one activation in the order of the list; a parameter may be set only while nothing else holds it. Training
loss and accuracy, and so the stop rule, are those under the interventions.

A strength s grades what is put in place of an activation x: (1−s)·x + s·(what replaces it), and gradients flow through
what is left of x. At strength 0 the run is bit for bit that without the intervention.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, model_validator

from mechinterp.section import Section

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class _Window(Section):
    start: int = Field(default=0, ge=0)
    """First step at which it is on."""
    stop: int | None = Field(default=None, ge=0)
    """Step at which it is off again; by default it stays on."""

    @model_validator(mode="after")
    def _lasting(self):
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop ({self.stop}) is not after start ({self.start}): it would never be on")
        return self

    def is_on(self, step: int) -> bool:
        """Whether it acts on the update from `step` to step + 1."""
        return self.start <= step and (self.stop is None or step < self.stop)


class Fix(_Window):
    """Sets parameters to a value at `start` and keeps them there until `stop`."""

    kind: Literal["fix"] = "fix"
    """Which intervention this is."""
    parameters: Names
    """Names, or patterns with * and ?, as in ``blocks.1.attn.*``."""
    value: float = Field(default=0.0, ge=-1e30, le=1e30)
    """What every entry is set to."""


class Freeze(_Window):
    """Keeps parameters at what they are at `start` until `stop`."""

    kind: Literal["freeze"] = "freeze"
    """Which intervention this is."""
    parameters: Names
    """Names, or patterns with * and ?."""


class Graft(Section):
    """Replaces parameters, once, by those of another run; from there they are trained on."""

    kind: Literal["graft"] = "graft"
    """Which intervention this is."""
    start: int = Field(default=0, ge=0)
    """The step at which they are replaced."""
    parameters: Names = ("*",)
    """Names, or patterns with * and ?."""
    run: str
    """The other run's file."""
    step: int = Field(ge=0)
    """The other run's step."""
    digest: str | None = None
    """SHA-256 of the other run's weights at that step; noted when training starts, and required again on replay."""


class _Graded(_Window):
    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    """s: 0 changes nothing, 1 replaces all."""

    @property
    def acts(self) -> bool:
        """False where it changes nothing."""
        return self.strength > 0


class _AtHeads(_Graded):
    layer: int = Field(ge=0)
    """The layer, counted from 0."""
    head: int | None = Field(default=None, ge=0)
    """The head, counted from 0; by default all of the layer."""


class Clamp(_AtHeads):
    """Puts a fixed pattern in place of an attention pattern: p ← (1−s)·p + s·c.

    * previous_token: every token attends to the one before it, the first to itself (ILA1 = 1);
    * uniform: every token attends alike to all up to itself;
    * correct_label: the target attends to its correct label, alike to several copies (TILA2 = 1);
    * labels: the target attends alike to all labels of the context (TLA2 = 1).

    The last two leave the other tokens' attention as it is, and the target's where there is no such label.
    """

    kind: Literal["clamp"] = "clamp"
    """Which intervention this is."""
    pattern: Literal["previous_token", "uniform", "correct_label", "labels"]
    """What c is."""


class Silence(_AtHeads):
    """Takes away what heads write into the residual stream: z ← (1−s)·z."""

    kind: Literal["silence"] = "silence"
    """Which intervention this is."""


class Copy(_Graded):
    """Puts a perfect copier in place of the classifier: logit_ℓ ← (1−s)·logit_ℓ + s·ξ Σ_j p_Tj [token j shows ℓ].

    p is the last layer's pattern, as clamped, its mean over heads. With s = 1 the classifier has no part in the answer
    and learns nothing (weight decay goes on): there is no ξ to learn, and so no slow phase.
    """

    kind: Literal["copy"] = "copy"
    """Which intervention this is."""
    xi: float = Field(default=20.0, gt=0.0, allow_inf_nan=False)
    """ξ, logits per unit of attention; networks that were trained have about 20."""


class Temperature(_Window):
    """Divides attention scores by a temperature: p = softmax(scores/τ)."""

    kind: Literal["temperature"] = "temperature"
    """Which intervention this is."""
    layer: int = Field(ge=0)
    """The layer, counted from 0."""
    head: int | None = Field(default=None, ge=0)
    """The head, counted from 0; by default all of the layer."""
    tau: float = Field(gt=0.0, allow_inf_nan=False)
    """τ: above 1 attention is flatter, below 1 sharper."""

    @property
    def acts(self) -> bool:
        """False where it changes nothing."""
        return self.tau != 1


Activation = Clamp | Silence | Copy | Temperature
"""Interventions that change the forward pass."""
Intervention = Annotated[Fix | Freeze | Graft | Clamp | Silence | Copy | Temperature, Discriminator("kind")]
