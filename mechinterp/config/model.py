"""The models that a config may name."""

# A section may have as a field or a property what its family declares: sections are frozen.
# pyright: reportIncompatibleVariableOverride=false

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from mechinterp.config.section import Family
from mechinterp.config.task import ItemLabelConfig, PairedItemsConfig, TaskConfig

MOST_LAYERS = 16
"""The most attention layers, and the most ReLU layers of the classifier, that a config may have."""


class ModelConfig(Family):
    """The section of a model: attention layers, and the MLP classifier with ReLU layers and a linear readout."""

    classifier_depth: int = Field(default=3, ge=0, le=MOST_LAYERS)
    """ReLU layers of the classifier; 0 leaves the linear readout."""
    classifier_width: int = Field(default=128, ge=1, le=8_192)
    """Width of the classifier's hidden layers."""
    classifier_init_variance: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)
    """Variance of the hidden layers' initial weights, times their fan-in: 2 preserves the scale of activations through
    ReLU layers; torch.nn.Linear has 1/3."""
    classifier_init: Literal["normal", "torch_linear"] = "normal"
    """normal: weights N(0, variance/fan_in), of the readout N(0, 1/fan_in), and biases 0. torch_linear: all of them,
    biases and readout too, uniform within ±1/√fan_in, as torch.nn.Linear starts."""
    readout_bias: bool = False
    """Whether the readout has a bias."""

    if TYPE_CHECKING:  # as fields or properties of every section
        n_layers: ClassVar[int]  # attention layers
        n_heads: ClassVar[int]  # heads in a layer

    @model_validator(mode="after")
    def _one_start(self) -> "ModelConfig":
        default = type(self).model_fields["classifier_init_variance"].default
        if self.classifier_init != "normal" and self.classifier_init_variance != default:
            raise ValueError(
                "classifier_init_variance has no effect on classifier_init = 'torch_linear': leave one of them out"
            )
        return self

    def require_fits(self, task: TaskConfig) -> None:
        """ValueError for a task that the model cannot be trained on, with what to change."""

    def initial_attention_std(self, task: TaskConfig) -> float:
        """Standard deviation of W_Q, W_K and W_V before training: 1/√D (Reddy 2023)."""
        return task.content_width**-0.5


class TransformerConfig(ModelConfig):
    """An attention-only network of vectors with an MLP classifier on the target (Reddy 2023, eqs 2 and 3)."""

    kind: Literal["transformer"] = "transformer"
    n_layers: int = Field(default=2, ge=1, le=MOST_LAYERS)
    """Attention layers."""
    n_heads: int = Field(default=1, ge=1, le=64)
    """Heads in a layer, with d_head = d_model and a full value matrix (W_O is the identity)."""
    attention_init_std: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Standard deviation of W_Q, W_K and W_V at the start; by default 1/√D (custom tasks: 1/√d_model)."""
    attention_init: Literal["normal", "torch_linear"] = "normal"
    """Distribution of W_Q, W_K and W_V at the start. torch_linear: uniform within ±1/√d_model."""
    trained_layer_norm: bool = False
    """Whether the LayerNorm of the task's tokens (tokens = "normalised") has a trained scale and shift, which are
    parameters of attention: ``blocks.0.ln.w`` and ``blocks.0.ln.b``."""
    use_attn_scale: bool = False
    """Whether scores are divided by √d_head; the paper's are not."""
    output_matrix: Literal["identity", "trained"] = "identity"
    """W_O. identity: a head writes its values. trained: W_O is a parameter, N(0, 1/d_head) at the start."""
    classifier_bias: Literal["vector", "shared"] = "vector"
    """vector: every hidden unit has a bias. shared: one number is the bias of a whole hidden layer."""
    readout: Literal["per_label", "difference"] = "per_label"
    """per_label: one logit per label. difference: one logit z for label 0 against label 1 of a task with two labels,
    whose logits are z/2 and −z/2; the cross-entropy is −log σ(±z)."""

    @model_validator(mode="after")
    def _one_attention_start(self) -> "TransformerConfig":
        if self.attention_init != "normal" and self.attention_init_std is not None:
            raise ValueError(
                "attention_init_std has no effect on attention_init = 'torch_linear': leave one of them out"
            )
        return self

    def require_fits(self, task: TaskConfig) -> None:
        if self.trained_layer_norm and not (isinstance(task, PairedItemsConfig) and task.tokens == "normalised"):
            raise ValueError(
                "model.trained_layer_norm takes task.kind = 'paired_items' with task.tokens = 'normalised'"
            )
        if self.readout == "difference" and task.n_labels != 2:
            raise ValueError(
                f"model.readout = 'difference' tells two labels apart, the task has {task.n_labels}: leave it out"
            )

    def initial_attention_std(self, task: TaskConfig) -> float:
        return super().initial_attention_std(task) if self.attention_init_std is None else self.attention_init_std


class InductionHeadConfig(ModelConfig):
    """The minimal induction head: α, β₁, β₂ and an MLP classifier (Reddy 2023, eqs 4 to 6); item–label task only.

    With β₂ fixed to 0 (an intervention), it is the two-parameter model.
    """

    n_layers: ClassVar[int] = 2
    n_heads: ClassVar[int] = 1

    kind: Literal["induction_head"] = "induction_head"
    alpha: float = Field(default=0.0, allow_inf_nan=False)
    """α at the start: the weight that layer 2 gives to the match of the target's content with a token's buffer."""
    beta1: float = Field(default=0.0, allow_inf_nan=False)
    """β₁ at the start: the weight that layer 1 gives to the token before."""
    beta2: float = Field(default=0.0, allow_inf_nan=False)
    """β₂ at the start: the weight that layer 2 gives to tokens at odd distance, which the labels are to the target."""
    attention_init_std: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Standard deviation of α, β₁ and β₂ at the start, about the values above."""

    def require_fits(self, task: TaskConfig) -> None:
        if not isinstance(task, ItemLabelConfig):
            raise ValueError("model.kind = 'induction_head' takes the item–label task: it reads the tokens' content")


class AdditiveConfig(ModelConfig):
    """The sum of memorisation and in-context learning (Nguyen & Reddy 2024, eqs 2 and 3); takes tokens = "plain".

    One logit z = φ(x_q) + w Σ_j softmax_j(β x_j·x_q) ℓ_j, with an MLP φ; see `models.additive`.
    """

    n_layers: ClassVar[int] = 1
    n_heads: ClassVar[int] = 1

    kind: Literal["additive"] = "additive"
    beta: float = Field(default=0.0, allow_inf_nan=False)
    """β at the start: the weight of the match between the target's item and an item of the context."""
    beta_init_std: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Standard deviation of β at the start, about `beta`."""
    w: float = Field(default=0.0, allow_inf_nan=False)
    """w at the start: the weight of the labels in the logit."""
    target_in_softmax: bool = False
    """Whether the target, which shows no label, is one of the tokens that the softmax weighs; the paper's eq. 3 has
    the context's pairs only."""
    classifier_width: int = Field(default=512, ge=1, le=8_190)
    """Width of φ's hidden layers."""

    def require_fits(self, task: TaskConfig) -> None:
        if not isinstance(task, PairedItemsConfig) or task.tokens != "plain":
            raise ValueError("model.kind = 'additive' takes task.kind = 'paired_items' with task.tokens = 'plain'")
