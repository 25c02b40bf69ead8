"""The tasks that a config may name."""

# A section may have as a field or a property what its family declares: sections are frozen.
# pyright: reportIncompatibleVariableOverride=false

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from mechinterp.config.section import Family


class TaskConfig(Family):
    """The section of a task."""

    if TYPE_CHECKING:  # as fields or properties of every section
        d_model: ClassVar[int]  # width of a token
        n_pos: ClassVar[int]  # T, the number of tokens in a sequence; the last one is the target
        n_labels: ClassVar[int]  # L, the number of labels, and of the network's outputs

    @property
    def d_vocab(self) -> int:
        """Number of different tokens; 0 if sequences are of vectors."""
        return 0

    @property
    def content_width(self) -> int:
        """D, the width of a token's content, which scales the initial attention weights."""
        return self.d_model

    def require_batch(self, size: int) -> None:
        """ValueError for a training batch that is larger than the training set, with what to change."""


class ItemLabelConfig(TaskConfig):
    """In-context classification of item–label sequences (Reddy 2023, section 2).

    A sequence is x₁ ℓ₁ … x_N ℓ_N x_q, T = 2N+1 tokens; the network names the label of the target x_q.
    """

    kind: Literal["item_label"] = "item_label"
    n_classes: int = Field(default=256, ge=1, le=1_000_000)
    """K, the number of trained classes; a multiple of n_labels. Class k carries label k mod L."""
    n_labels: int = Field(default=32, ge=2, le=10_000)
    """L, the number of labels, and of the network's outputs."""
    n_pairs: int = Field(default=8, ge=1, le=1_000)
    """N, the number of item–label pairs in a context."""
    content_dim: int = Field(default=63, ge=1, le=4_096)
    """D, the dimensions that carry content; class means and label vectors are N(0, 1/D)."""
    position_dim: int = Field(default=65, ge=0, le=4_096)
    """P, the dimensions that carry the one-hot position; at least 2N+1. 0: tokens are their content alone, and only
    their order, by the model's `positional_embedding_type` or causal mask, tells their positions."""
    epsilon: float = Field(default=0.1, ge=0.0, allow_inf_nan=False)
    """ε, within-class variability: content is (μ + ε η)/√(1+ε²)."""
    zipf_exponent: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """α of the rank–frequency law f(k) ∝ k^−α over the trained classes."""
    burstiness: int = Field(default=1, ge=0)
    """B, copies of a class in a bursty context; divides N. 0: classes and target are drawn i.i.d."""
    p_bursty: float = Field(default=1.0, ge=0.0, le=1.0)
    """p_B, the fraction of bursty sequences among those that are not in-context ones; the rest is i.i.d."""
    p_in_context: float = Field(default=0.0, ge=0.0, le=1.0)
    """p_C, the fraction of in-context sequences: all classes novel, drawn anew for every batch."""
    n_novel_classes: int = Field(default=128, ge=1, le=1_000_000)
    """Novel classes drawn for every batch, shared by its sequences; a multiple of n_labels."""
    novel_classes: Literal["fresh", "fixed"] = "fresh"
    """fixed: those of training are drawn once instead, so that they can be memorised; evaluation sets draw new ones."""
    distinct_labels: bool = True
    """True: the N/B classes of a bursty context carry N/B different labels, whatever their frequency.
    False: they are drawn i.i.d. from f (labels, and classes, may repeat), as Zipf experiments need."""
    label_assignment: Literal["by_class", "by_sequence"] = "by_class"
    """by_sequence: in in-context sequences, N/B different novel classes are given labels anew in every sequence (Singh
    et al. 2024), different ones with distinct_labels, so that classes which are fixed cannot be memorised either."""

    @property
    def n_pos(self) -> int:
        """T = 2N+1, the number of tokens."""
        return 2 * self.n_pairs + 1

    @property
    def d_model(self) -> int:
        """P + D, the width of a token."""
        return self.position_dim + self.content_dim

    @property
    def content_width(self) -> int:
        return self.content_dim

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
        if self.label_assignment == "by_sequence":
            if not self.p_in_context:
                faults.append("label_assignment = 'by_sequence' is of in-context sequences: raise p_in_context above 0")
            if self.n_novel_classes < N // self.copies:
                least = N // self.copies
                faults.append(f"a context of {least} different novel classes needs as many: raise n_novel_classes")
        elif self.n_novel_classes % L:
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
        if 0 < self.position_dim < self.n_pos:
            faults.append(
                f"the sequence of 2N+1 = {self.n_pos} tokens is longer than position_dim (P={self.position_dim}):"
                f" raise position_dim to at least {self.n_pos}, or lower n_pairs, or set position_dim = 0"
            )
        if self.zipf_exponent > 0 and self.distinct_labels and B and self.p_bursty > 0 and self.p_in_context < 1:
            faults.append(
                f"zipf_exponent (α={self.zipf_exponent}) has no effect on bursty sequences with distinct labels:"
                " set distinct_labels = false"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class PairedItemsConfig(TaskConfig):
    """In-context classification of item–label pairs, with a dataset to memorise (Nguyen & Reddy 2024, section 2).

    A sequence has N tokens x ⊕ ℓ, ℓ = ±1, and a target x_q, which is the item of one of them: T = N+1 tokens.
    """

    n_labels: ClassVar[int] = 2
    """ℓ = +1 and ℓ = −1."""

    kind: Literal["paired_items"] = "paired_items"
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
    """Whether exactly N/2 labels of a context are +1 (𝒟′ of section 4); N must then be even."""
    equal_labels: bool = False
    """Whether exactly K/2 pairs of a fixed dataset have each label; K must then be even. Else labels are i.i.d."""
    tokens: Literal["normalised", "plain"] = "normalised"
    """normalised: LayerNorm (without parameters) of x ⊕ one-hot ℓ, (0, 0) for the target; the transformer's tokens.
    plain: x ⊕ ℓ ⊕ 0, and x ⊕ 0 ⊕ 1 for the target; the additive model's tokens."""

    @property
    def n_pos(self) -> int:
        """T = N+1, the number of tokens."""
        return self.n_pairs + 1

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
        if self.equal_labels and self.dataset == "fixed" and self.n_items % 2:
            faults.append(
                f"n_items (K={self.n_items}) is odd, and half of the labels are to be +1: use {self.n_items + 1}"
            )
        if self.dataset == "fresh" and self.zipf_exponent:
            faults.append("zipf_exponent has no effect on a fresh dataset: leave it out, or set dataset = 'fixed'")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class TokensConfig(TaskConfig):
    """A task whose sequences are tokens."""

    d_model: ClassVar[int] = 0


class NextTokenConfig(TokensConfig):
    """A task of tokens whose labels are the tokens that may follow."""

    n_tokens: int = Field(default=64, ge=2, le=65_536)
    """V, the number of different tokens."""

    @property
    def d_vocab(self) -> int:
        return self.n_tokens

    @property
    def n_labels(self) -> int:
        """V: any token may be next."""
        return self.n_tokens


class InductionTokensConfig(NextTokenConfig):
    """Random strings of different tokens, repeated to the end of the sequence (Olsson et al. 2022)."""

    kind: Literal["induction_tokens"] = "induction_tokens"
    n_pos: int = Field(default=48, ge=3, le=8_192)
    """T, the number of tokens in a sequence."""
    min_period: int = Field(default=8, ge=4, le=8_192)
    """The shortest string."""
    max_period: int = Field(default=24, ge=4, le=8_192)
    """The longest string; the period of a sequence is drawn uniformly."""

    @model_validator(mode="after")
    def _possible(self) -> "InductionTokensConfig":
        faults = []
        if self.min_period > self.max_period:
            faults.append(f"min_period ({self.min_period}) exceeds max_period ({self.max_period}): swap them")
        if self.max_period > self.n_tokens:
            faults.append(
                f"strings of max_period = {self.max_period} different tokens need as many n_tokens, here"
                f" {self.n_tokens}: raise n_tokens or lower max_period"
            )
        if self.max_period >= self.n_pos:
            faults.append(
                f"the last of n_pos = {self.n_pos} tokens does not repeat a string of max_period = {self.max_period}:"
                f" raise n_pos to at least {self.max_period + 1}"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class MarkovChainsConfig(NextTokenConfig):
    """Sequences of Markov chains, of which every sequence has a new one (Edelman et al. 2024, section 2)."""

    kind: Literal["markov_chains"] = "markov_chains"
    n_tokens: int = Field(default=3, ge=2, le=256)
    """k, the number of states of a chain, which are the tokens."""
    n_pos: int = Field(default=100, ge=3, le=8_192)
    """T, the number of tokens in a sequence."""
    concentration: float = Field(default=1.0, ge=0.05, le=1e6)
    """α: the rows of a transition matrix are Dirichlet(α, …, α); 1 is uniform on the simplex, small ones have rows of
    nearly certain transitions."""
    doubly_stochastic: bool = False
    """Whether columns of transition matrices sum to 1 too, so that all tokens are equally frequent and counting single
    tokens tells nothing."""


class ModularAdditionConfig(TokensConfig):
    """Addition of two numbers modulo p, learned from a part of all pairs (Power et al. 2022, Nanda et al. 2023).

    A sequence is the numbers a and b and the token "=", which has the index p; its label is (a + b) mod p.
    """

    n_pos: ClassVar[int] = 3

    kind: Literal["modular_addition"] = "modular_addition"
    modulus: int = Field(default=113, ge=3, le=500)
    """p, the number of numbers, and of labels."""
    train_fraction: float = Field(default=0.3, gt=0.0, lt=1.0)
    """Share of the p² pairs (a, b) that are trained on; the others are the test set."""

    @property
    def d_vocab(self) -> int:
        return self.modulus + 1

    @property
    def n_labels(self) -> int:
        """p."""
        return self.modulus

    @property
    def n_train(self) -> int:
        """Pairs in the training set, ⌊train_fraction · p²⌋, at least 1: the batch size of full-batch training."""
        return max(int(self.train_fraction * self.modulus**2), 1)

    def require_batch(self, size: int) -> None:
        if size > self.n_train:
            raise ValueError(
                f"training.batch_size = {size} exceeds the {self.n_train} pairs of the training set"
                f" (task.train_fraction = {self.train_fraction} of {self.modulus**2}): set it to {self.n_train}, the"
                " full batch, or less"
            )


class CustomTaskConfig(TaskConfig):
    """The shape of a task that the user defines and passes to `train` and `open_run`."""

    kind: Literal["custom"] = "custom"
    name: str = Field(max_length=200)
    """The class of the user's task."""
    d_model: int = Field(default=0, ge=0, le=8_192)
    """Width of a vector; 0 of tokens."""
    n_tokens: int = Field(default=0, ge=0, le=1_000_000)
    """Number of different tokens; 0 of vectors."""
    n_pos: int = Field(ge=1, le=8_192)
    """Number of tokens in a sequence."""
    n_labels: int = Field(ge=1, le=1_000_000)
    """Number of the network's outputs."""

    @property
    def d_vocab(self) -> int:
        return self.n_tokens

    @model_validator(mode="after")
    def _one_input(self) -> "CustomTaskConfig":
        if bool(self.d_model) == bool(self.n_tokens):
            raise ValueError("a task has vectors (d_model) or tokens (n_tokens), and one of them must be given")
        return self
