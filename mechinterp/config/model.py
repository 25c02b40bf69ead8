"""The models that a config may name."""

# A section may have as a field or a property what its family declares: sections are frozen.
# pyright: reportIncompatibleVariableOverride=false

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from mechinterp.config.section import Family
from mechinterp.config.task import ItemLabelConfig, PairedItemsConfig, TaskConfig

MOST_LAYERS = 16
"""The most layers, and the most ReLU layers of the classifier, that a config may have."""
_NOT_CLASSIC = (
    *("d_model", "d_head", "d_mlp", "normalization_type", "positional_embedding_type", "biases", "input", "output"),
    "init_mode",
)
"""Settings of `TransformerConfig` that the network of Reddy 2023 leaves at their defaults."""


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

    @property
    def answers_everywhere(self) -> bool:
        """Whether it has logits at every position, not at the target alone."""
        return False

    def require_fits(self, task: TaskConfig) -> None:
        """ValueError for a task that the model cannot be trained on, with what to change."""

    def initial_attention_std(self, task: TaskConfig) -> float:
        """Standard deviation of W_Q, W_K and W_V before training: 1/√D (Reddy 2023)."""
        return task.content_width**-0.5


class TransformerConfig(ModelConfig):
    """A causal transformer. Its settings have the names of HookedTransformerConfig (TransformerLens).

    By default the network of Reddy 2023 (eqs 2 and 3): attention only, on vectors as they are, heads as wide as the
    residual stream without scale and biases, and an MLP classifier on the target.
    """

    kind: Literal["transformer"] = "transformer"
    n_layers: int = Field(default=2, ge=1, le=MOST_LAYERS)
    """Layers."""
    n_heads: int = Field(default=1, ge=1, le=64)
    """Heads in a layer."""
    d_model: int | None = Field(default=None, ge=1, le=8_192)
    """Width of the residual stream; by default that of the task's vectors."""
    d_head: int | None = Field(default=None, ge=1, le=8_192)
    """Width of a head's queries, keys and values; by default d_model."""
    d_mlp: int | None = Field(default=None, ge=1, le=32_768)
    """Width of the MLP after every attention; by default there is none (attn_only)."""
    act_fn: Literal["relu", "gelu", "gelu_new", "silu"] = "relu"
    """Activation function of the MLPs; gelu_new is GPT-2's approximation."""
    parallel_attn_mlp: bool = False
    """Whether the MLP reads what attention reads, the residual stream before the layer, instead of what attention has
    written (GPT-J, GPT-NeoX)."""
    normalization_type: Literal["LN", "LNPre", "RMS", "RMSPre"] | None = None
    """Normalisation of what attention, MLPs and the output read: LayerNorm or RMSNorm; Pre: without trained scale and
    shift. By default none."""
    final_norm: bool = True
    """Whether the last residual stream is normalised too, where there is a normalisation."""
    positional_embedding_type: (
        Literal["standard", "sinusoidal", "rotary", "shortformer", "relative_positional_bias"] | None
    ) = None
    """standard: trained vectors, added to the embedding. sinusoidal: those of Vaswani 2017. rotary: queries and keys
    are rotated by their position. shortformer: trained vectors, added to what queries and keys read.
    relative_positional_bias: a trained number for every bucket of distances, added to scores (T5). By default none."""
    rotary_dim: int | None = Field(default=None, ge=2, le=8_192)
    """Dimensions of a head that are rotated; by default all of them."""
    rotary_base: float = Field(default=10_000.0, gt=1.0, allow_inf_nan=False)
    """Base of the rotation's frequencies."""
    relative_attention_num_buckets: int = Field(default=32, ge=2, le=8_192)
    """Buckets of distances: half of them have one distance, the others grow logarithmically."""
    relative_attention_max_distance: int = Field(default=128, ge=2, le=65_536)
    """The distance from which on all are in one bucket."""
    use_attn_scale: bool = False
    """Whether scores are divided by √d_head; the paper's are not."""
    biases: bool = False
    """Whether attention, MLPs, a trained input map and the unembedding have biases."""
    input: Literal["as_is", "projected", "tokens"] = "as_is"
    """as_is: the task's vectors are the residual stream. projected: a trained map makes it of them. tokens: a trained
    embedding makes it of the task's tokens."""
    output: Literal["classifier", "unembedding", "tied"] = "classifier"
    """classifier: an MLP on the target. unembedding: logits of all labels at every position. tied: by the transposed
    embedding."""
    init_mode: Literal["reddy2023", "transformer_lens", "gpt2", "torch"] = "reddy2023"
    """The start of all but the classifier. reddy2023: attention as below, W_O and other weights N(0, 1/fan_in).
    transformer_lens: all N(0, 0.64/d_model). gpt2: N(0, 0.02²), with a factor 1/√(2 n_layers) for what writes to the
    residual stream. In these, biases are 0. torch: linear maps with their biases uniform within ±1/√fan_in, embeddings
    N(0, 1)."""
    attention_init_std: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    """Standard deviation of W_Q, W_K and W_V at the start; by default 1/√D (custom tasks: 1/√d_model)."""
    attention_init: Literal["normal", "torch_linear"] = "normal"
    """Distribution of W_Q, W_K and W_V at the start. torch_linear: uniform within ±1/√d_model."""
    trained_layer_norm: bool = False
    """Whether the LayerNorm of the task's tokens (tokens = "normalised") has a trained scale and shift, which are
    parameters of attention: ``blocks.0.ln.w`` and ``blocks.0.ln.b``."""
    output_matrix: Literal["identity", "trained"] = "identity"
    """W_O. identity: a head writes its values. trained: W_O is a parameter, N(0, 1/d_model) at the start."""
    classifier_bias: Literal["vector", "shared"] = "vector"
    """vector: every hidden unit has a bias. shared: one number is the bias of a whole hidden layer."""
    readout: Literal["per_label", "difference"] = "per_label"
    """per_label: one logit per label. difference: one logit z for label 0 against label 1 of a task with two labels,
    whose logits are z/2 and −z/2; the cross-entropy is −log σ(±z)."""

    @property
    def attn_only(self) -> bool:
        """Whether there are no MLPs."""
        return self.d_mlp is None

    @property
    def has_position_vectors(self) -> bool:
        """Whether positions are vectors of the residual stream's width, trained or sinusoidal."""
        return self.positional_embedding_type in ("standard", "sinusoidal", "shortformer")

    @property
    def answers_everywhere(self) -> bool:
        return self.output != "classifier"

    @property
    def is_classic(self) -> bool:
        """Whether attention without W_O reads and writes the task's vectors, and a classifier reads the target."""
        fields = type(self).model_fields
        return all(getattr(self, name) == fields[name].default for name in _NOT_CLASSIC)

    @model_validator(mode="after")
    def _consistent(self) -> "TransformerConfig":
        if self.attention_init != "normal" and self.attention_init_std is not None:
            raise ValueError(
                "attention_init_std has no effect on attention_init = 'torch_linear': leave one of them out"
            )
        relative = "relative_positional_bias"
        for name, needed, has_effect in (
            ("act_fn", "d_mlp", self.d_mlp is not None),
            ("parallel_attn_mlp", "d_mlp", self.d_mlp is not None),
            ("final_norm", "normalization_type", self.normalization_type is not None),
            ("attention_init", "init_mode = 'reddy2023'", self.init_mode == "reddy2023"),
            ("attention_init_std", "init_mode = 'reddy2023'", self.init_mode == "reddy2023"),
            *(
                (name, f"positional_embedding_type = '{relative}'", self.positional_embedding_type == relative)
                for name in ("relative_attention_num_buckets", "relative_attention_max_distance")
            ),
            ("rotary_dim", "positional_embedding_type = 'rotary'", self.positional_embedding_type == "rotary"),
            ("rotary_base", "positional_embedding_type = 'rotary'", self.positional_embedding_type == "rotary"),
        ):
            if not has_effect and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without {needed}: leave it out")
        if 2 * self.relative_attention_max_distance <= self.relative_attention_num_buckets:
            raise ValueError("relative_attention_max_distance must exceed half of relative_attention_num_buckets")
        if self.output != "classifier":
            for name in (*ModelConfig.model_fields, "classifier_bias", "readout"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect on output = {self.output!r}: leave it out")
        if self.output == "tied" and self.input != "tokens":
            raise ValueError("output = 'tied' takes input = 'tokens': there is no embedding to share")
        if self.input != "as_is" and self.d_model is None:
            raise ValueError(f"input = {self.input!r} needs d_model, the width of the residual stream")
        return self

    def width(self, task: TaskConfig) -> int:
        """d_model, the width of the residual stream."""
        return task.d_model if self.d_model is None else self.d_model

    def head_width(self, task: TaskConfig) -> int:
        """d_head, the width of a head's queries, keys and values."""
        return self.width(task) if self.d_head is None else self.d_head

    def require_fits(self, task: TaskConfig) -> None:
        if self.trained_layer_norm and not (isinstance(task, PairedItemsConfig) and task.tokens == "normalised"):
            raise ValueError(
                "model.trained_layer_norm takes task.kind = 'paired_items' with task.tokens = 'normalised'"
            )
        if (self.input == "tokens") != bool(task.d_vocab):
            what, needed = ("tokens", "'tokens'") if task.d_vocab else ("vectors", "'as_is' or 'projected'")
            raise ValueError(f"the task's sequences are {what}: set model.input = {needed}")
        if self.output == "tied" and task.n_labels != task.d_vocab:
            raise ValueError(
                f"model.output = 'tied' answers with one of the {task.d_vocab} tokens, and the task has"
                f" {task.n_labels} labels: set model.output = 'unembedding'"
            )
        width, d_head = self.width(task), self.head_width(task)
        if self.input == "as_is" and width != task.d_model:
            raise ValueError(
                f"model.d_model = {width}, and the task's vectors have {task.d_model} dimensions: leave d_model out, or"
                " set model.input = 'projected'"
            )
        if self.output_matrix == "identity" and d_head != width:
            raise ValueError(
                f"heads of model.d_head = {d_head} dimensions need a W_O to write {width}: set model.output_matrix ="
                " 'trained', or leave d_head out"
            )
        rotated = d_head if self.rotary_dim is None else self.rotary_dim
        if self.positional_embedding_type == "rotary" and (rotated % 2 or rotated > d_head):
            raise ValueError(
                f"rotary positions rotate pairs of dimensions, here {rotated} of a head's {d_head}: make"
                f" model.{'d_head' if self.rotary_dim is None else 'rotary_dim'} even, and no more than d_head"
            )
        if self.positional_embedding_type == "sinusoidal" and width % 2:
            raise ValueError(f"sinusoidal positions are pairs of sine and cosine: make model.d_model = {width} even")
        if self.readout == "difference" and task.n_labels != 2:
            raise ValueError(
                f"model.readout = 'difference' tells two labels apart, the task has {task.n_labels}: leave it out"
            )

    def initial_attention_std(self, task: TaskConfig) -> float:
        by_default = super().initial_attention_std(task) if self.input == "as_is" else self.width(task) ** -0.5
        return by_default if self.attention_init_std is None else self.attention_init_std


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
        if not task.position_dim:
            raise ValueError(
                f"model.kind = 'induction_head' reads positions: set task.position_dim to {task.n_pos} or more"
            )


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
