"""The networks as plain functions of their parameters: no modules, and no TransformerLens to import.

For many forward passes that need only logits and attention patterns, as the progress measures do, and for automatic
differentiation. `forward` computes what the hooked models compute, for any number of layers and heads. Functions may be
hooked in under TransformerLens' hook names:

==========================================  =============================================================
``blocks.{l}.attn.hook_attn_scores``        [batch, head, query, key], −∞ where the key is later
``blocks.{l}.attn.hook_pattern``            [batch, head, query, key], rows sum to 1
``blocks.{l}.attn.hook_z``                  [batch, query, head, d_model]
``classifier.hook_in``                      [batch, d_model]
``classifier.layers.{i}.hook_{pre,post}``   [batch, width]
``classifier.hook_logits``                  [batch, n_labels]
==========================================  =============================================================
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechinterp.errors import unknown_name

Hooks = Mapping[str, Callable[[Tensor], Tensor]]
"""What replaces an activation, by hook name."""
Parameters = Mapping[str, Tensor]


def forward(
    parameters: Parameters,
    inputs: Float[Tensor, "batch pos d_model"],
    hooks: Hooks | None = None,
    *,
    target_only: bool = False,
) -> tuple[Float[Tensor, "batch n_labels"], dict[str, Float[Tensor, "batch head query key"]]]:
    """Logits at the last token, and every layer's attention pattern under its TransformerLens hook name.

    After the last layer only the target is read. With `target_only`, that layer's queries (of its scores, pattern and
    z) are the target's alone, which is what training needs. A hook that does not exist here raises.
    """
    at = _Hooked(hooks or {})
    attend = _induction_head if "blocks.1.attn.alpha" in parameters else _transformer
    x, patterns = attend(parameters, inputs, at, target_only)
    logits = classify(parameters, x, at)
    at.require_fired()
    return logits, patterns


def classify(
    parameters: Parameters, x: Float[Tensor, "batch d_model"], at: Callable[[str, Tensor], Tensor] | None = None
) -> Float[Tensor, "batch n_labels"]:
    """The ReLU classifier's logits for what it reads at the target."""
    at = at or _Hooked({})
    x = at("classifier.hook_in", x)
    for i in range(sum(name.endswith(".b") for name in parameters)):
        layer = f"classifier.layers.{i}"
        pre = at(f"{layer}.hook_pre", x @ parameters[f"{layer}.W"] + parameters[f"{layer}.b"])
        x = at(f"{layer}.hook_post", torch.relu(pre))
    return at("classifier.hook_logits", x @ parameters["classifier.readout.W"])


def _transformer(
    parameters: Parameters, residual: Tensor, at: "_Hooked", target_only: bool
) -> tuple[Float[Tensor, "batch d_model"], dict[str, Tensor]]:
    """The target's residual stream after all layers; see `models.transformer`."""
    patterns = {}
    n_layers = sum(name.endswith("attn.W_Q") for name in parameters)
    for layer in range(n_layers):
        attn = f"blocks.{layer}.attn"
        W_Q, W_K, W_V = (parameters[f"{attn}.W_{matrix}"] for matrix in "QKV")
        last = layer == n_layers - 1
        queries = residual[:, -1:] if last and target_only else residual
        scores = torch.einsum("bqd,hde->bhqe", queries, W_Q @ W_K.transpose(-2, -1)) @ residual.transpose(1, 2)[:, None]
        scores = scores.masked_fill(_future(residual)[-queries.shape[1] :], -torch.inf)
        pattern = at(f"{attn}.hook_pattern", at(f"{attn}.hook_attn_scores", scores).softmax(dim=-1))
        patterns[f"{attn}.hook_pattern"] = pattern
        read = pattern[:, :, -1:] if last and not at.wants(f"{attn}.hook_z") else pattern
        z = at(f"{attn}.hook_z", torch.einsum("bhqd,hde->bqhe", read @ residual[:, None], W_V))
        residual = residual[:, -z.shape[1] :] + z.sum(dim=2)
    return residual[:, -1], patterns


def _induction_head(
    parameters: Parameters, inputs: Tensor, at: "_Hooked", target_only: bool
) -> tuple[Float[Tensor, "batch twice_content_dim"], dict[str, Tensor]]:
    """The target's content and buffer after both layers; see `models.induction_head`."""
    beta1, alpha, beta2 = (parameters[f"blocks.{name}"] for name in ("0.attn.beta1", "1.attn.alpha", "1.attn.beta2"))
    fan_in = next(value.shape[0] for name, value in parameters.items() if name.startswith("classifier."))
    content = inputs[:, :, -(fan_in // 2) :]
    n_batch, n_pos, _ = content.shape
    future = _future(inputs)
    before = torch.eye(n_pos, dtype=content.dtype, device=content.device)[:-1]
    previous = torch.cat([torch.zeros_like(before[:1]), before])  # δ_{i−1,j}
    scores = (beta1 * previous).masked_fill(future, -torch.inf).expand(n_batch, 1, n_pos, n_pos)
    first = at("blocks.0.attn.hook_pattern", at("blocks.0.attn.hook_attn_scores", scores).softmax(dim=-1))
    buffer = at("blocks.0.attn.hook_z", (first @ content[:, None]).transpose(1, 2))[:, :, 0]
    queries = content[:, -1:] if target_only else content
    n_queries = queries.shape[1]
    position = torch.arange(n_pos, device=content.device)
    odd = (position[:, None] - position)[-n_queries:] % 2 == 1  # Δ_ij
    scores = alpha * (queries @ buffer.transpose(1, 2)) + beta2 * odd
    scores = scores.masked_fill(future[-n_queries:], -torch.inf)[:, None]
    second = at("blocks.1.attn.hook_pattern", at("blocks.1.attn.hook_attn_scores", scores).softmax(dim=-1))
    z = at("blocks.1.attn.hook_z", (second @ content[:, None]).transpose(1, 2))
    patterns = {"blocks.0.attn.hook_pattern": first, "blocks.1.attn.hook_pattern": second}
    return torch.cat([content[:, -1], z[:, -1, 0]], dim=-1), patterns


def _future(tokens: Float[Tensor, "*batch pos d_model"]) -> Bool[Tensor, "pos pos"]:
    """Which keys are later than the query."""
    n_pos = tokens.shape[-2]
    return torch.ones(n_pos, n_pos, dtype=torch.bool, device=tokens.device).triu(1)


class _Hooked:
    """Passes activations on, through the hooks that there are."""

    def __init__(self, hooks: Hooks):
        self._hooks, self._names = hooks, list[str]()

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self._names.append(name)
        return self._hooks[name](value) if name in self._hooks else value

    def wants(self, name: str) -> bool:
        return name in self._hooks

    def require_fired(self) -> None:
        for name in self._hooks:
            if name not in self._names:
                raise unknown_name("hook", name, self._names)
