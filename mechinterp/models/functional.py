"""The same network as a plain function of its parameters: no hooks, and no TransformerLens to import.

For many forward passes that need only logits and attention patterns, as the progress measures do. It computes what
`VectorTransformer` computes, for any number of layers and heads.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def forward(
    parameters: Mapping[str, Tensor], inputs: Float[Tensor, "batch pos d_model"]
) -> tuple[Float[Tensor, "batch n_labels"], dict[str, Float[Tensor, "batch head query key"]]]:
    """Logits at the last token, and every layer's attention pattern under its TransformerLens hook name."""
    residual, patterns = inputs, {}
    n_pos = inputs.shape[1]
    future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
    n_layers = sum(name.endswith("attn.W_Q") for name in parameters)
    for layer in range(n_layers):
        W_Q, W_K, W_V = (parameters[f"blocks.{layer}.attn.W_{matrix}"] for matrix in "QKV")
        tokens = residual[:, None]
        scores = (tokens @ (W_Q @ W_K.transpose(-2, -1))) @ tokens.transpose(-2, -1)
        pattern = scores.masked_fill_(future, -torch.inf).softmax(dim=-1)
        patterns[f"blocks.{layer}.attn.hook_pattern"] = pattern
        last = layer == n_layers - 1  # after the last layer only the target is read
        mixed = (pattern[:, :, -1:] if last else pattern) @ tokens
        residual = (residual[:, -1:] if last else residual) + (mixed @ W_V).sum(dim=1)
    return classify(parameters, residual[:, -1]), patterns


def classify(parameters: Mapping[str, Tensor], x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch n_labels"]:
    """The ReLU classifier's logits for the target's residual stream."""
    depth = sum(name.endswith(".b") for name in parameters)
    for i in range(depth):
        x = torch.relu(x @ parameters[f"classifier.layers.{i}.W"] + parameters[f"classifier.layers.{i}.b"])
    return x @ parameters["classifier.readout.W"]
