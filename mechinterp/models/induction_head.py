"""The minimal induction head of Reddy 2023 (eqs 4 to 6): what an induction head does, in three parameters.

A token's content is c_i; its buffer is empty at first. With Δ_ij = 1 iff i − j is odd:

    layer 1      b_i = Σ_{j≤i} p¹_ij c_j,  p¹_ij ∝ exp(β₁ δ_{i−1,j})
    layer 2      w_i = Σ_{j≤i} p²_ij c_j,  p²_ij ∝ exp(α b_j·c_i + β₂ Δ_ij)
    classifier   logits of c_T ⊕ w_T at the target T, by the same ReLU layers as in the full network

α here is the strength of the match; the paper also calls the exponent of the rank–frequency law so. The hooked model
has TransformerLens' hook names where the quantity is the same (``blocks.0.attn.hook_pattern``, ``…hook_attn_scores``,
``…hook_z``: what a layer writes into the buffer), so measures run unchanged. `compiled` is the same network as a
`VectorTransformer`, on which every circuit analysis runs.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.functional import forward
from mechinterp.models.hooks import CheckedHooks, HookPoint
from mechinterp.models.parameters import INDUCTION_HEAD, content_dim, parameter_shapes
from mechinterp.models.planted import induction_head
from mechinterp.models.transformer import Classifier, VectorTransformer, set_parameters


class _Attention(nn.Module):
    def __init__(self, names: list[str], dtype: torch.dtype):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, dtype=dtype)))
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint()


class _Block(nn.Module):
    def __init__(self, names: list[str], dtype: torch.dtype):
        super().__init__()
        self.attn = _Attention(names, dtype)


class InductionHead(CheckedHooks):
    """The minimal induction head, hooked: from vectors [batch, pos, d_model] to logits [batch, n_labels]."""

    def __init__(self, config: RunConfig, parameters: Mapping[str, Tensor]):
        super().__init__()
        self._config, model, dtype = config, config.model, parameters["blocks.0.attn.beta1"].dtype
        self.blocks = nn.ModuleList(_Block(names, dtype) for names in (["beta1"], ["alpha", "beta2"]))
        self.classifier = Classifier(
            2 * content_dim(config), model.classifier_width, model.classifier_depth, config.task.n_labels, dtype
        )
        self.trained = tuple(parameter_shapes(config))
        """Names of the trained parameters: all there are."""
        set_parameters(self, parameters)
        self.setup()

    def forward(self, input: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch n_labels"]:
        """Logits at the last token."""
        parameters = self._parameters_in_order()
        logits, _ = forward(parameters, input.to(parameters["blocks.0.attn.beta1"].dtype), self.hook_dict)
        return logits

    def compiled(self) -> VectorTransformer:
        """The same network as a HookedTransformer, see `compiled`."""
        return compiled(self._config, {name: value.detach() for name, value in self._parameters_in_order().items()})

    def _parameters_in_order(self) -> dict[str, Tensor]:
        own = dict(self.named_parameters())
        return {name: own[name] for name in self.trained}


def as_transformer(config: RunConfig) -> RunConfig:
    """The config of the transformer that a minimal induction head compiles into."""
    depth, width = config.model.classifier_depth, config.model.classifier_width
    return config.model_copy(update={"model": TransformerConfig(classifier_depth=depth, classifier_width=width)})


def compiled(config: RunConfig, parameters: Mapping[str, Tensor]) -> VectorTransformer:
    """The minimal induction head with these parameters as a HookedTransformer that gives the same logits.

    Its residual stream is position ⊕ content ⊕ buffer ⊕ output, P + 3D wide; the classifier reads content and output.
    Weights of the softmaxes and sums are the same, so logits agree up to rounding (1e-5 in float32).
    """
    reading = "classifier.layers.0.W" if config.model.classifier_depth else "classifier.readout.W"
    strengths = {argument: parameters[name].item() for name, argument in INDUCTION_HEAD.items()}
    planted = induction_head(as_transformer(config), **strengths, without="readout", dtype=parameters[reading].dtype)
    own = dict(planted.named_parameters())
    own = {name: own[name].detach() for name in planted.trained}
    own |= {name: value for name, value in parameters.items() if name.startswith("classifier.") and name != reading}
    D = content_dim(config)
    P, from_content, from_output = config.task.d_model - D, *parameters[reading].split(D)
    own[reading][P : P + D], own[reading][P + 2 * D :] = from_content, from_output
    set_parameters(planted, own)
    return planted
