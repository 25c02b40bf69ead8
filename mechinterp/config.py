"""What a run is: frozen, strict, documented configs.

A `RunConfig` fixes a run completely: task, model, training, checkpoint schedule and seed. It is written into the
run file as canonical JSON. Unknown keys are refused, and every fault of a file is listed at once.
"""

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from mechinterp import interventions
from mechinterp.errors import ConfigError, unknown_name
from mechinterp.files import read_toml
from mechinterp.interventions import Intervention
from mechinterp.section import Section

if TYPE_CHECKING:
    from mechinterp.tasks import ItemLabelTask, PairedItemsTask


MAX_CHECKPOINTS = 1_000_000
"""More in one file than this is taken for a mistake."""


class ItemLabelConfig(Section):
    """In-context classification of item–label sequences (Reddy 2023, section 2).

    A sequence is x₁ ℓ₁ … x_N ℓ_N x_q, T = 2N+1 tokens; the network names the label of the target x_q.
    """

    kind: Literal["item_label"] = "item_label"
    """Which task this is."""
    n_classes: int = Field(default=256, ge=1, le=1_000_000)
    """K, the number of trained classes; a multiple of n_labels. Class k carries label k mod L."""
    n_labels: int = Field(default=32, ge=2, le=10_000)
    """L, the number of labels, and of the network's outputs."""
    n_pairs: int = Field(default=8, ge=1, le=1_000)
    """N, the number of item–label pairs in a context."""
    content_dim: int = Field(default=63, ge=1, le=4_096)
    """D, the dimensions that carry content; class means and label vectors are N(0, 1/D)."""
    position_dim: int = Field(default=65, ge=3, le=4_096)
    """P, the dimensions that carry the one-hot position; at least 2N+1."""
    epsilon: float = Field(default=0.1, ge=0.0, allow_inf_nan=False)
    """ε, within-class variability: content is (μ + ε η)/√(1+ε²)."""
    zipf_exponent: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """α of the rank–frequency law f(k) ∝ k^−α over the trained classes."""
    burstiness: int = Field(default=1, ge=0)
    """B, copies of each class in a bursty context; divides N. 0: classes and target are drawn i.i.d."""
    p_bursty: float = Field(default=1.0, ge=0.0, le=1.0)
    """p_B, the fraction of bursty sequences among those that are not in-context ones; the rest is i.i.d."""
    p_in_context: float = Field(default=0.0, ge=0.0, le=1.0)
    """p_C, the fraction of in-context sequences: all classes novel, drawn anew for every batch."""
    n_novel_classes: int = Field(default=128, ge=1, le=1_000_000)
    """Novel classes drawn for each batch, shared by its sequences; a multiple of n_labels."""
    novel_classes: Literal["fresh", "fixed"] = "fresh"
    """fixed: those of training are drawn once instead, so that they can be memorised; evaluation sets draw new ones."""
    distinct_labels: bool = True
    """True: the N/B classes of a bursty context carry N/B different labels, whatever their frequency.
    False: they are drawn i.i.d. from f (labels, and classes, may repeat), as Zipf experiments need."""

    @property
    def n_pos(self) -> int:
        """T = 2N+1, the number of tokens."""
        return 2 * self.n_pairs + 1

    @property
    def d_model(self) -> int:
        """P + D, the width of a token."""
        return self.position_dim + self.content_dim

    @property
    def copies(self) -> int:
        """Copies of the target's class in a bursty or in-context sequence: max(B, 1)."""
        return max(self.burstiness, 1)

    @model_validator(mode="after")
    def _possible(self) -> "ItemLabelConfig":
        K, L, N, B = self.n_classes, self.n_labels, self.n_pairs, self.burstiness
        faults = []
        if K < L:
            faults.append(f"n_classes (K={K}) is smaller than n_labels (L={L}): raise n_classes to at least {L}")
        elif K % L:
            faults.append(f"n_classes (K={K}) is no multiple of n_labels (L={L}): use {K - K % L} or {K - K % L + L}")
        if self.n_novel_classes % L:
            more = self.n_novel_classes - self.n_novel_classes % L + L
            faults.append(f"n_novel_classes ({self.n_novel_classes}) is no multiple of n_labels (L={L}): use {more}")
        if B and N % B:
            allowed = ", ".join(str(b) for b in range(1, N + 1) if N % b == 0)
            faults.append(f"n_pairs (N={N}) is not divisible by burstiness (B={B}): use B in {{0, {allowed}}}")
        elif self.distinct_labels and N // self.copies > L:
            faults.append(
                f"a context of N/B = {N // self.copies} distinct labels needs more than n_labels (L={L}):"
                " raise n_labels or burstiness, or set distinct_labels = false"
            )
        if self.n_pos > self.position_dim:
            faults.append(
                f"the sequence of 2N+1 = {self.n_pos} tokens is longer than position_dim (P={self.position_dim}):"
                f" raise position_dim to at least {self.n_pos}, or lower n_pairs"
            )
        if self.zipf_exponent > 0 and self.distinct_labels and B and self.p_bursty > 0 and self.p_in_context < 1:
            faults.append(
                f"zipf_exponent (α={self.zipf_exponent}) has no effect on bursty sequences with distinct labels:"
                " set distinct_labels = false"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class PairedItemsConfig(Section):
    """In-context classification of item–label pairs, with a dataset to memorise (Nguyen & Reddy 2024, section 2).

    A sequence has N tokens x ⊕ ℓ, ℓ = ±1, and a target x_q, which is the item of one of them: T = N+1 tokens.
    """

    kind: Literal["paired_items"] = "paired_items"
    """Which task this is."""
    dataset: Literal["fixed", "fresh"] = "fixed"
    """fixed: sequences are drawn from K pairs. fresh: all pairs of a sequence are new, K = ∞."""
    n_items: int = Field(default=10_000, ge=2, le=1_000_000)
    """K, the number of pairs of a fixed dataset."""
    n_pairs: int = Field(default=100, ge=2, le=10_000)
    """N, the number of pairs in a context; with an iwl evaluation set, fewer than K."""
    item_dim: int = Field(default=63, ge=1, le=4_096)
    """D, the dimensions of an item; its components are N(0, 1/D)."""
    zipf_exponent: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """α of the rank–frequency law f(k) ∝ k^−α over a fixed dataset's pairs."""
    balanced: bool = False
    """Whether exactly N/2 labels of a context are +1 (𝒟′ of section 4); N is then even."""
    tokens: Literal["normalised", "plain"] = "normalised"
    """normalised: LayerNorm (without parameters) of x ⊕ one-hot ℓ, as the transformer reads them, the target's label
    being (0, 0). plain: x ⊕ ℓ ⊕ 0, and x ⊕ 0 ⊕ 1 for the target, as the additive model does."""

    @property
    def n_pos(self) -> int:
        """T = N+1, the number of tokens."""
        return self.n_pairs + 1

    @property
    def n_labels(self) -> int:
        """Two: ℓ = +1 and ℓ = −1."""
        return 2

    @property
    def d_model(self) -> int:
        """D+2."""
        return self.item_dim + 2

    @model_validator(mode="after")
    def _possible(self) -> "PairedItemsConfig":
        faults = []
        if self.balanced and self.n_pairs % 2:
            faults.append(
                f"n_pairs (N={self.n_pairs}) is odd, and half of its labels are to be +1: use {self.n_pairs + 1}"
            )
        if self.dataset == "fixed" and self.n_items <= self.n_pairs:
            faults.append(
                f"n_items (K={self.n_items}) must exceed n_pairs (N={self.n_pairs}), or no item is left that a context"
                " does not show"
            )
        if self.dataset == "fresh" and self.zipf_exponent:
            faults.append("zipf_exponent has no effect on a fresh dataset: leave it out, or set dataset = 'fixed'")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class CustomTaskConfig(Section):
    """Stands in the run file for a task of the user's own, which is passed to `train` and `open_run` as an object."""

    kind: Literal["custom"] = "custom"
    """Which task this is."""
    name: str = Field(max_length=200)
    """The class of the user's task."""
    d_model: int = Field(ge=1, le=8_192)
    """Width of a token."""
    n_pos: int = Field(ge=1, le=8_192)
    """Number of tokens in a sequence."""
    n_labels: int = Field(ge=1, le=10_000)
    """Number of the network's outputs."""


class ClassifierConfig(Section):
    """The MLP that every model ends with: what it reads passes through ReLU layers to a linear readout."""

    classifier_depth: int = Field(default=3, ge=0, le=16)
    """ReLU layers of the classifier; 0 leaves the linear readout."""
    classifier_width: int = Field(default=128, ge=1, le=8_192)
    """Width of the classifier's hidden layers."""
    classifier_init_variance: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)
    """Variance of the hidden layers' weights at the start, times their fan-in: 2 keeps what ReLU layers carry as large
    as it was, 1/3 is that of torch.nn.Linear."""


class TransformerConfig(ClassifierConfig):
    """An attention-only network of vectors with an MLP classifier on the target (Reddy 2023, eqs 2 and 3)."""

    kind: Literal["transformer"] = "transformer"
    """Which model this is."""
    n_layers: int = Field(default=2, ge=1, le=16)
    """Attention layers."""
    n_heads: int = Field(default=1, ge=1, le=64)
    """Heads in each layer; each has d_head = d_model and a full value matrix (W_O is the identity)."""
    attention_init_std: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Standard deviation of W_Q, W_K and W_V at the start; by default 1/√D (custom tasks: 1/√d_model)."""
    use_attn_scale: bool = False
    """Whether scores are divided by √d_head; the paper's are not."""
    output_matrix: Literal["identity", "trained"] = "identity"
    """W_O. identity: W_V alone is what a head writes. trained: W_O is a parameter, N(0, 1/d_head) at the start."""
    classifier_bias: Literal["vector", "shared"] = "vector"
    """vector: every hidden unit has a bias. shared: one number is the bias of a whole hidden layer."""
    readout: Literal["per_label", "difference"] = "per_label"
    """per_label: a logit for each label. difference: one logit z for label 0 against label 1 of a task with two, which
    are then given z/2 and −z/2; the cross-entropy is −log σ(±z)."""


class InductionHeadConfig(ClassifierConfig):
    """The minimal induction head: α, β₁, β₂ and an MLP classifier (Reddy 2023, eqs 4 to 6); item–label task only.

    With β₂ fixed to 0 (an intervention), it is the two-parameter model.
    """

    kind: Literal["induction_head"] = "induction_head"
    """Which model this is."""
    alpha: float = Field(default=0.0, allow_inf_nan=False)
    """α at the start: the weight that layer 2 gives to the match of the target's content with a token's buffer."""
    beta1: float = Field(default=0.0, allow_inf_nan=False)
    """β₁ at the start: the weight that layer 1 gives to the token before."""
    beta2: float = Field(default=0.0, allow_inf_nan=False)
    """β₂ at the start: the weight that layer 2 gives to tokens at odd distance, which the labels are to the target."""

    @property
    def n_layers(self) -> int:
        """Two attention layers."""
        return 2

    @property
    def n_heads(self) -> int:
        """One head in each."""
        return 1


class AdditiveConfig(ClassifierConfig):
    """Memorising and in-context learning side by side (Nguyen & Reddy 2024, eqs 2 and 3); paired items in plain tokens.

    One logit z = φ(x_q) + w Σ_j softmax_j(β x_j·x_q) ℓ_j, with an MLP φ; see `models.additive`.
    """

    kind: Literal["additive"] = "additive"
    """Which model this is."""
    beta: float = Field(default=0.0, allow_inf_nan=False)
    """β at the start: how sharply the target attends to items like its own."""
    w: float = Field(default=0.0, allow_inf_nan=False)
    """w at the start: the weight of the labels that it attends to."""
    classifier_width: int = Field(default=512, ge=1, le=8_190)
    """Width of φ's hidden layers."""

    @property
    def n_layers(self) -> int:
        """One attention layer."""
        return 1

    @property
    def n_heads(self) -> int:
        """One head."""
        return 1


class TrainingConfig(Section):
    """Stochastic gradient descent (momentum 0) on the cross-entropy at the target; fresh data at every step."""

    steps: int = Field(default=6_000, ge=0, le=1_000_000_000)
    """Number of updates."""
    batch_size: int = Field(default=128, ge=1, le=100_000)
    """Sequences a step."""
    learning_rate: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """Step size lr."""
    weight_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay λ of every trained parameter, biases included."""
    attention_weight_decay: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Decay of the parameters of attention alone (blocks.…), in place of λ; by default λ."""
    weight_decay_convention: Literal["per_step", "times_learning_rate"] = "per_step"
    """per_step: p ← (1−λ)p − lr·g. times_learning_rate: p ← (1−lr·λ)p − lr·g, as torch.optim.SGD has it."""
    stop_accuracy: float | None = Field(default=None, gt=0.0, le=1.0)
    """Stop at the first checkpoint whose training accuracy (mean since the last one, under whatever interventions)
    reaches this; default never."""
    stop_plateau: int | None = Field(default=None, ge=2)
    """Stop at the first checkpoint by which so many steps have changed neither the loss nor the in-context and
    in-weights accuracies (`mechinterp.training.stopping`); default never."""

    def shrinkage(self, name: str) -> float:
        """What one step subtracts from the parameter p of a name, as a fraction of p."""
        own = self.attention_weight_decay if name.startswith("blocks.") else None
        decay = self.weight_decay if own is None else own
        return decay if self.weight_decay_convention == "per_step" else decay * self.learning_rate


class CheckpointConfig(Section):
    """Which steps are saved: the union of the three rules, step 0 and the last step."""

    every: int | None = Field(default=100, ge=1)
    """Every so many steps."""
    per_decade: int | None = Field(default=None, ge=1)
    """So many logarithmically spaced steps in each decade."""
    at: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    """These very steps."""

    def schedule(self, last: int) -> list[int]:
        """The saved steps of a run of `last` updates, ascending; step s is the state after s updates."""
        steps = {0, last} | {step for step in self.at if step <= last}
        if self.every:
            steps.update(range(0, last + 1, self.every))
        if self.per_decade and last:
            n_points = int(self.per_decade * math.log10(last)) + 1
            steps.update(min(last, round(10 ** (i / self.per_decade))) for i in range(n_points))
        return sorted(steps)


def _kind(default: str) -> Discriminator:
    """Tells by a section's `kind` which of several models it is; without one, the default."""

    def kind_of(value: Any) -> str:
        if isinstance(value, dict):
            return str(value.get("kind", default))
        return str(getattr(value, "kind", default))  # what is no table fails there, with a fitting message

    return Discriminator(kind_of)


class RunConfig(Section):
    """Everything that determines a run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random: class means, initial weights, training data, evaluation sets."""
    task: Annotated[
        Annotated[ItemLabelConfig, Tag("item_label")]
        | Annotated[PairedItemsConfig, Tag("paired_items")]
        | Annotated[CustomTaskConfig, Tag("custom")],
        _kind("item_label"),
    ] = ItemLabelConfig()
    """Where sequences come from."""
    model: Annotated[
        Annotated[TransformerConfig, Tag("transformer")]
        | Annotated[InductionHeadConfig, Tag("induction_head")]
        | Annotated[AdditiveConfig, Tag("additive")],
        _kind("transformer"),
    ] = TransformerConfig()
    """What is trained."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """What is kept."""
    interventions: Annotated[tuple[Intervention, ...], Field(strict=False), tyro.conf.Suppress] = ()
    """What is held, clamped or replaced during training; see `mechinterp.interventions`."""

    @model_validator(mode="after")
    def _schedulable(self) -> "RunConfig":
        steps, every = self.training.steps, self.checkpoints.every
        late = [step for step in self.checkpoints.at if step > steps]
        if late:
            raise ValueError(f"checkpoints.at has {late[0]}, after the last step (training.steps = {steps}): remove it")
        if every and steps // every > MAX_CHECKPOINTS:
            least = -(-steps // MAX_CHECKPOINTS)
            raise ValueError(f"checkpoints.every = {every} gives {steps // every:,} checkpoints: use {least} or more")
        return self

    @model_validator(mode="after")
    def _fitting(self) -> "RunConfig":
        if self.model.kind == "induction_head" and self.task.kind != "item_label":
            raise ValueError("model.kind = 'induction_head' takes the item–label task: it reads the tokens' content")
        if self.model.kind == "additive" and getattr(self.task, "tokens", None) != "plain":
            raise ValueError("model.kind = 'additive' takes task.kind = 'paired_items' with task.tokens = 'plain'")
        if self.model.kind == "transformer" and self.model.readout == "difference" and self.task.n_labels != 2:
            raise ValueError(
                f"model.readout = 'difference' tells two labels apart, the task has {self.task.n_labels}: leave it out"
            )
        window, distance = self.training.stop_plateau, self.checkpoints.every or self.training.steps
        if window and 2 * distance > window:
            raise ValueError(
                f"training.stop_plateau = {window} compares two halves, and checkpoints are {distance} steps apart:"
                f" set checkpoints.every to {window // 2} or less"
            )
        for each in self.interventions:
            last = self.training.steps
            if each.start > last or (each.start == last > 0 and each.kind not in ("fix", "graft")):
                raise ValueError(f"interventions: {each.kind} starts at {each.start}, after the last step ({last - 1})")
            for what, count in (("layer", self.model.n_layers), ("head", self.model.n_heads)):
                number = getattr(each, what, None) or 0
                if number >= count:
                    raise ValueError(f"interventions: {each.kind}: {what} is {number}, expected 0 to {count - 1}")
        return self

    @property
    def attention_init_std(self) -> float:
        """Standard deviation of the initial W_Q, W_K, W_V: as configured, or 1/√D (Reddy 2023)."""
        if isinstance(self.model, TransformerConfig) and self.model.attention_init_std is not None:
            return self.model.attention_init_std
        scale = self.task.content_dim if isinstance(self.task, ItemLabelConfig) else self.task.d_model
        return scale**-0.5

    @classmethod
    def preset(cls, name: str, *, seed: int = 0) -> "RunConfig":
        """A named config.

        "reddy2023" (figures 3 and 4), "reddy2023-fast" (the same flow time, ten times sooner), "reddy2023-minimal"
        (the minimal induction head, figure 6a); "nguyen2024" (the one-layer network of the 2024 paper),
        "nguyen2024-fast" (N=32, a narrower MLP, ten times sooner) or "nguyen2024-minimal" (the additive model).
        """
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS)
        return cls.from_dict({**PRESETS[name], "seed": seed}, source=f"preset {name}")

    @classmethod
    def from_toml(cls, path: str | Path) -> "RunConfig":
        """Read a config from a TOML file; whatever it leaves out has its default."""
        values = read_toml(path)
        if isinstance(values.get("task"), dict) and values["task"].get("kind") == "custom":
            raise ConfigError(
                f"{path}: task.kind: a custom task cannot be made from a file; pass it to train() in Python"
            )
        return cls.from_dict(values, source=str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config") -> "RunConfig":
        """Validate nested `values`. A ConfigError lists every fault, with dotted paths and nearest names."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain(error)}") from None

    def updated(self, changes: Mapping[str, Any]) -> "RunConfig":
        """This config with dotted keys replaced, validated anew: `config.updated({"task.n_classes": 512})`.

        Another `kind` of task or model starts from that kind's defaults.
        """
        values = self.model_dump()
        for dotted, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):
            *sections, key = dotted.split(".")
            target = values
            for section in sections:
                if not isinstance(target.get(section), dict):
                    raise ConfigError(f"{dotted}: there is no section {section!r}; known: {', '.join(target)}")
                target = target[section]
            if key == "kind" and target.get("kind") != value:
                target.clear()
            target[key] = value
        return self.from_dict(values)

    def canonical_json(self) -> str:
        """The config as JSON with sorted keys and no blanks: equal configs give equal text."""
        return canonical(self.model_dump(mode="json"))

    def distinguishing(self) -> dict[str, Any]:
        """The seed, the kinds, and whatever else differs from its default, as plain values: what names a run.

        A setting that a later version adds does not rename the runs that were made without it.
        """
        sections = {name: getattr(self, name) for name in ("task", "model", "training", "checkpoints")}
        return {
            "seed": self.seed,
            "interventions": [_distinguishing(each) for each in self.interventions],
            **{name: _distinguishing(section) for name, section in sections.items()},
        }

    def build_task(self) -> "ItemLabelTask | PairedItemsTask":
        """The task of this run, seeded with the run's seed."""
        from mechinterp.tasks import ItemLabelTask, PairedItemsTask

        if isinstance(self.task, CustomTaskConfig):
            raise ConfigError(
                f"this run was trained on the custom task {self.task.name!r}, which its file does not contain:"
                " open it in Python with open_run(path, task=your_task)"
            )
        if isinstance(self.task, PairedItemsConfig):
            return PairedItemsTask(self.task, seed=self.seed)
        return ItemLabelTask(self.task, seed=self.seed)


_REDDY_2023 = {
    "task": {"n_classes": 256, "p_in_context": 0.8, "burstiness": 1, "epsilon": 0.1},
    "training": {"steps": 60_000, "learning_rate": 0.01, "weight_decay": 1e-6},
    "checkpoints": {"every": 1_000},
}
_BY_LEARNING_RATE = {"weight_decay_convention": "times_learning_rate"}
_NGUYEN_2024: dict[str, dict[str, Any]] = {
    "task": {"kind": "paired_items", "n_items": 20_000, "n_pairs": 100},
    "model": {
        "kind": "transformer",
        "n_layers": 1,
        "classifier_width": 512,
        "readout": "difference",
        "attention_init_std": 0.05,
    },
    "training": {"steps": 200_000, "learning_rate": 0.01, "weight_decay": 1e-10, **_BY_LEARNING_RATE},
    "checkpoints": {"every": 2_000},
}
PRESETS: dict[str, dict[str, Any]] = {
    "reddy2023": _REDDY_2023,
    "reddy2023-fast": {
        **_REDDY_2023,
        "training": {"steps": 6_000, "learning_rate": 0.1, "weight_decay": 1e-5},
        "checkpoints": {"every": 100},
    },
    "nguyen2024": _NGUYEN_2024,
    "nguyen2024-fast": {
        **_NGUYEN_2024,
        "task": {"kind": "paired_items", "n_items": 16_000, "n_pairs": 32},
        "model": {**_NGUYEN_2024["model"], "classifier_width": 128},
        "training": {"steps": 4_000, "learning_rate": 0.1, "weight_decay": 1e-10, **_BY_LEARNING_RATE},
        "checkpoints": {"every": 100},
    },
    "nguyen2024-minimal": {
        **_NGUYEN_2024,
        "task": {**_NGUYEN_2024["task"], "tokens": "plain"},
        "model": {"kind": "additive"},
        "training": {**_NGUYEN_2024["training"], "steps": 60_000},
    },
    "reddy2023-minimal": {
        **_REDDY_2023,
        "task": {**_REDDY_2023["task"], "content_dim": 64},
        "model": {"kind": "induction_head"},
        "training": {"steps": 40_000, "learning_rate": 0.01, "weight_decay": 1e-6},
        "checkpoints": {"every": 500},
    },
}
"""Presets, as values that differ from the defaults.

Figures 3, 4 and 6a of Reddy 2023: K=256, p_C=0.8, B=1, ε=0.1. Nguyen & Reddy 2024: N=100, beyond their K* of about 10⁴;
they do not say how attention starts. From 0.07 on, most seeds stay for long where they know one of the two labels.
"""


def _distinguishing(section: Section) -> dict[str, Any]:
    kind = {"kind": getattr(section, "kind")} if hasattr(section, "kind") else {}  # noqa: B009
    return section.model_dump(mode="json", exclude_defaults=True) | kind


def canonical(values: dict[str, Any]) -> str:
    """Plain values as JSON with sorted keys and no blanks: equal values give equal text."""
    return json.dumps(_positive_zeros(values), sort_keys=True, separators=(",", ":"))


def _positive_zeros(value: Any) -> Any:
    """−0.0 equals 0.0, and so is written like it."""
    if isinstance(value, dict):
        return {key: _positive_zeros(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_positive_zeros(each) for each in value]
    return value + 0.0 if isinstance(value, float) else value


def explain(error: ValidationError) -> str:
    """Every fault that pydantic found, on one line."""
    return "; ".join(_explain(fault) for fault in error.errors())


def _explain(fault: Any) -> str:
    """One fault of pydantic's list, as `dotted.path: what is wrong`."""
    path = [str(part) for part in fault["loc"] if part not in _KINDS]
    kind = next((part for part in fault["loc"] if part in _KINDS), None)
    dotted = ".".join(path) or "config"
    if fault["type"] == "extra_forbidden":
        fields = _fields_of(path[:-1], kind)
        near = get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
        return f"{dotted}: unknown key; {hint}"
    if fault["type"] == "union_tag_invalid":
        return f"{dotted}.kind: unknown {dotted} {fault['ctx']['tag']!r}; known: {fault['ctx']['expected_tags']}"
    if fault["type"] == "union_tag_not_found":
        return f"{dotted}: has no kind; name one of {', '.join(name.lower() for name in _INTERVENTIONS)}"
    message = fault["msg"].removeprefix("Value error, ")
    shown = "" if fault["type"] == "value_error" else f" (got {fault['input']!r})"
    return f"{dotted}: {message[0].lower() + message[1:] if shown else message}{shown}"


_INTERVENTIONS = ("Fix", "Freeze", "Graft", "Clamp", "Silence", "Copy", "Temperature")
_KINDS: dict[str, type[Section]] = {
    "item_label": ItemLabelConfig,
    "paired_items": PairedItemsConfig,
    "custom": CustomTaskConfig,
    "transformer": TransformerConfig,
    "induction_head": InductionHeadConfig,
    "additive": AdditiveConfig,
    **{name.lower(): getattr(interventions, name) for name in _INTERVENTIONS},
}
_SECTIONS: dict[str, type[Section]] = {"training": TrainingConfig, "checkpoints": CheckpointConfig}


def _fields_of(path: list[str], kind: str | None) -> list[str]:
    section = _KINDS[kind] if kind else _SECTIONS.get(path[0], RunConfig) if path else RunConfig
    return list(section.model_fields)
