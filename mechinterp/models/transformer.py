"""The attention-only network of Reddy 2023 (eqs 2 and 3), and of Nguyen & Reddy 2024 with one layer.

Layer μ adds V_μ Σ_{j≤i} p^μ_ij u_j to token i, with p^μ_ij = softmax_{j≤i}((K_μ u_j)·(Q_μ u_i)): causal, the token
itself included, a full value matrix, no LayerNorm and no biases. A ReLU classifier reads the last token, the target.

The papers leave some conventions open. Under another convention a network has other parameters and gradients, and
computes the same as the canonical network with

    W_Q ← W_Q / √d_head    use_attn_scale,
    W_V ← W_V W_O          output_matrix = "trained",
    b   ← b·1              classifier_bias = "shared",
    W   ← (W/2, −W/2)      readout = "difference", of the classifier's readout.

For one layer and one head the gradient is computed by hand. Only the target's output is read, so there is one query
per sequence. With tokens x_j, the target t = x_T and A = W_Q W_Kᵀ,

    q = Aᵀ t,  s_j = q·x_j,  p = softmax(s),  r = Σ_j p_j x_j,  u = t + W_Vᵀ r          read by the classifier

    ∂ℒ/∂W_V = r ⊗ ∂ℒ/∂u,  ∂ℒ/∂r = W_V ∂ℒ/∂u,  ∂ℒ/∂p_j = x_j·∂ℒ/∂r
    ∂ℒ/∂s_j = p_j (∂ℒ/∂p_j − Σ_k p_k ∂ℒ/∂p_k),  ∂ℒ/∂q = Σ_j ∂ℒ/∂s_j x_j
    ∂ℒ/∂A = t ⊗ ∂ℒ/∂q,  ∂ℒ/∂W_Q = ∂ℒ/∂A W_K,  ∂ℒ/∂W_K = ∂ℒ/∂Aᵀ W_Q

summed over sequences, ℒ being their mean.

With `trained_layer_norm` the tokens are x_j = g ⊙ y_j + h of the task's normalised y_j. As Σ_j ∂ℒ/∂s_j = 0,

    ∂ℒ/∂t = ∂ℒ/∂u + W_Q W_Kᵀ ∂ℒ/∂q,  ∂ℒ/∂h = ∂ℒ/∂t + ∂ℒ/∂r
    ∂ℒ/∂g = ∂ℒ/∂t ⊙ y_T + q ⊙ Σ_j ∂ℒ/∂s_j y_j + ∂ℒ/∂r ⊙ Σ_j p_j y_j
"""

import numpy as np
import torch
from jaxtyping import Float

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.base import Architecture, Canonical, Gradients, Parameters, Shapes, split_difference
from mechinterp.models.classifier import classifier_gradients, require_labels
from mechinterp.tasks.base import Batch

LAYER_NORM = ("blocks.0.ln.w", "blocks.0.ln.b")
"""Scale and shift of the tokens."""
CANONICAL_OUTPUT = {"classifier_bias": "vector", "readout": "per_label"}
CANONICAL = {"use_attn_scale": False, "output_matrix": "identity", **CANONICAL_OUTPUT}
"""The conventions of the canonical network."""


class Transformer(Architecture):
    """Attention layers of vectors, and a classifier on the target."""

    def body_shapes(self, config: RunConfig) -> Shapes:
        """The parameters of all but the output, with TransformerLens' names (W_O: if trained; biases: if configured).

        ``embed.W_E`` [d_vocab or d_token, d_model] and ``embed.b_E`` of a trained input, ``pos_embed.W_pos``
        [pos, d_model], ``blocks.{layer}.``: ``ln1.{w,b}`` [d_model], ``attn.W_{Q,K,V}`` [head, d_model, d_head],
        ``attn.W_O`` [head, d_head, d_model], ``attn.b_{Q,K,V}`` [head, d_head], ``attn.b_O`` [d_model],
        ``attn.rel_pos_bias`` [bucket, head], ``ln2.{w,b}``, ``mlp.W_in`` [d_model, d_mlp], ``mlp.b_in``, ``mlp.W_out``,
        ``mlp.b_out``; and ``ln_final.{w,b}``. With `trained_layer_norm`, first ``blocks.0.ln.{w,b}`` [d_model].
        """
        model, task = _model(config), config.task
        d_model, d_head, heads = model.width(task), model.head_width(task), model.n_heads
        norm: Shapes = {"w": (d_model,)} if model.normalization_type in ("LN", "RMS") else {}
        norm |= {"b": (d_model,)} if model.normalization_type == "LN" else {}
        shapes: Shapes = {name: (d_model,) for name in LAYER_NORM} if model.trained_layer_norm else {}
        if model.input != "as_is":
            shapes["embed.W_E"] = (task.d_vocab or task.d_model, d_model)
            if model.input == "projected" and model.biases:
                shapes["embed.b_E"] = (d_model,)
        if model.positional_embedding_type in ("standard", "shortformer"):
            shapes["pos_embed.W_pos"] = (task.n_pos, d_model)
        for layer in range(model.n_layers):
            block, attn = f"blocks.{layer}", f"blocks.{layer}.attn"
            shapes |= {f"{block}.ln1.{name}": shape for name, shape in norm.items()}
            shapes |= {f"{attn}.W_{name}": (heads, d_model, d_head) for name in "QKV"}
            if model.output_matrix == "trained":
                shapes[f"{attn}.W_O"] = (heads, d_head, d_model)
            if model.biases:
                shapes |= {f"{attn}.b_{name}": (heads, d_head) for name in "QKV"} | {f"{attn}.b_O": (d_model,)}
            if model.positional_embedding_type == "relative_positional_bias":
                shapes[f"{attn}.rel_pos_bias"] = (model.relative_attention_num_buckets, heads)
            if model.d_mlp is not None:
                shapes |= {f"{block}.ln2.{name}": shape for name, shape in norm.items()}
                biases: Shapes = {"b_in": (model.d_mlp,), "b_out": (d_model,)} if model.biases else {}
                mlp: Shapes = {"W_in": (d_model, model.d_mlp), "W_out": (model.d_mlp, d_model)}
                shapes |= {f"{block}.mlp.{name}": shape for name, shape in (mlp | biases).items()}
        return shapes | ({f"ln_final.{name}": shape for name, shape in norm.items()} if model.final_norm else {})

    def output_shapes(self, config: RunConfig) -> Shapes:
        """``unembed.W_U`` [d_model, n_labels] and ``unembed.b_U``, or those of the classifier."""
        model, n_labels = _model(config), config.task.n_labels
        if model.output == "classifier":
            return super().output_shapes(config)
        shapes: Shapes = {"unembed.W_U": (model.width(config.task), n_labels)} if model.output == "unembedding" else {}
        return shapes | ({"unembed.b_U": (n_labels,)} if model.biases else {})

    def classifier_input(self, config: RunConfig) -> int:
        """d_model: the target's residual stream."""
        return _model(config).width(config.task)

    def n_logits(self, config: RunConfig) -> int:
        """One if the readout is a difference, else one per label."""
        return 1 if _model(config).readout == "difference" else config.task.n_labels

    def n_biases(self, config: RunConfig) -> int:
        """One if it is shared, else one per unit."""
        return 1 if _model(config).classifier_bias == "shared" else config.model.classifier_width

    def initial_body(
        self, config: RunConfig, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> float | Float[np.ndarray, "..."]:
        """The values that `init_mode` says; scales of normalisations 1, their shifts 0."""
        model = _model(config)
        if ".ln" in name or name.startswith("ln_final"):
            return 1.0 if name.endswith(".w") else 0.0
        if name.endswith("W_O") and model.init_mode == "reddy2023":
            return shape[-1] ** -0.5 * rng.standard_normal(shape)
        if not name.endswith(("W_Q", "W_K", "W_V")) or model.init_mode != "reddy2023":
            return _initial(model, name, self.parameter_shapes(config), rng)
        if model.attention_init == "torch_linear":
            return rng.uniform(-(shape[1] ** -0.5), shape[1] ** -0.5, shape)
        return super().initial_body(config, name, shape, rng)

    def canonical(self, config: RunConfig, parameters: Parameters) -> Canonical:
        """The network with the scale, W_O, the shared bias and the difference multiplied out.

        Of a network that is not `is_classic`, only a tied unembedding and a shared bias or difference of a classifier
        are: its forward pass has all other parts.
        """
        model, canonical = _model(config), dict(parameters)
        if model.output == "tied":
            canonical["unembed.W_U"] = canonical["embed.W_E"].T
        for layer in range(model.n_layers if model.is_classic else 0):
            attn = f"blocks.{layer}.attn"
            if model.use_attn_scale:
                canonical[f"{attn}.W_Q"] = canonical[f"{attn}.W_Q"] * canonical[f"{attn}.W_Q"].shape[-1] ** -0.5
            if model.output_matrix == "trained":
                canonical[f"{attn}.W_V"] = canonical[f"{attn}.W_V"] @ canonical.pop(f"{attn}.W_O")
        if model.classifier_bias == "shared":
            for i in range(model.classifier_depth):
                bias = f"classifier.layers.{i}.b"
                canonical[bias] = canonical[bias].expand(model.classifier_width)
        if model.readout == "difference":
            for name in [name for name in canonical if name.startswith("classifier.readout.")]:
                canonical[name] = split_difference(canonical[name])
        changes = CANONICAL if model.is_classic else CANONICAL_OUTPUT
        if model.output == "tied":
            changes = changes | {"output": "unembedding"}
        if model != (conventional := model.model_copy(update=changes)):
            config = config.model_copy(update={"model": conventional})
        return Canonical(config, canonical, {})

    def has_gradients(self, config: RunConfig) -> bool:
        """Whether it has one layer and one head, under the canonical conventions."""
        return self.canonical_has_gradients(config) and _model(config) == _model(config).model_copy(update=CANONICAL)

    def canonical_has_gradients(self, config: RunConfig) -> bool:
        """Whether it is classic and has one layer and one head."""
        return _model(config).is_classic and config.model.n_layers == 1 and config.model.n_heads == 1

    def gradients(self, config: RunConfig, parameters: Parameters, batch: Batch, into: Parameters) -> Gradients:
        """The gradient above."""
        labels = require_labels(batch, config.task.n_labels)
        W_Q, W_K, W_V = (parameters[f"blocks.0.attn.W_{matrix}"][0] for matrix in "QKV")
        x = tokens = batch.inputs.to(W_Q.dtype)
        scale, shift = (parameters.get(name) for name in LAYER_NORM)
        if scale is not None and shift is not None:
            x = torch.addcmul(shift, tokens, scale)
        t = x[:, -1]

        q = (t @ W_Q) @ W_K.T
        p = torch.softmax(torch.bmm(x, q[:, :, None])[:, :, 0], dim=-1)
        r = torch.bmm(p[:, None], x)[:, 0]
        u = torch.addmm(t, r, W_V)
        loss, correct, du = classifier_gradients(parameters, into, u, labels)
        torch.mm(r.T, du, out=into["blocks.0.attn.W_V"][0])
        dr = du @ W_V.T
        dp = torch.bmm(x, dr[:, :, None])[:, :, 0]
        ds = p * (dp - (p * dp).sum(dim=1, keepdim=True))
        dq = torch.bmm(ds[:, None], x)[:, 0]
        dA = t.T @ dq
        torch.mm(dA, W_K, out=into["blocks.0.attn.W_Q"][0])
        torch.mm(dA.T, W_Q, out=into["blocks.0.attn.W_K"][0])
        if scale is not None:
            dt = du + (dq @ W_K) @ W_Q.T
            of_scores, of_values = (torch.bmm(weights[:, None], tokens)[:, 0] for weights in (ds, p))
            into["blocks.0.ln.w"][:] = (dt * tokens[:, -1] + q * of_scores + dr * of_values).sum(dim=0)
            into["blocks.0.ln.b"][:] = (dt + dr).sum(dim=0)
        return Gradients(loss, correct)


def _initial(
    model: TransformerConfig, name: str, shapes: Shapes, rng: np.random.Generator
) -> float | Float[np.ndarray, "..."]:
    """Initial values of a weight or bias by the rule of `init_mode`."""
    shape, embedding = shapes[name], name == "pos_embed.W_pos" or (name == "embed.W_E" and model.input == "tokens")
    if model.init_mode == "torch" and (embedding or name.endswith("rel_pos_bias")):
        return rng.standard_normal(shape)
    if model.init_mode == "torch":
        bound = _fan_in(name, shapes) ** -0.5
        return rng.uniform(-bound, bound, shape)
    if _is_bias(name):
        return 0.0
    d_model = shapes["blocks.0.attn.W_Q"][1]
    std = {
        "gpt2": 0.02 * ((2 * model.n_layers) ** -0.5 if name.endswith(("W_O", "W_out")) else 1.0),
        "transformer_lens": 0.8 * d_model**-0.5,
        "reddy2023": (d_model if embedding else _fan_in(name, shapes)) ** -0.5,
    }
    return std[model.init_mode] * rng.standard_normal(shape)


def _fan_in(name: str, shapes: Shapes) -> int:
    """Number of inputs of the linear map to which a weight or bias belongs."""
    shape, d_model = shapes.get(name.replace(".b_", ".W_")), shapes["blocks.0.attn.W_Q"][1]
    if shape is None:  # a bias beside an identity W_O, or a tied unembedding
        return d_model
    return shape[0] * shape[1] if name.endswith("_O") else shape[-2]


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("b_") or last == "rel_pos_bias"


def _model(config: RunConfig) -> TransformerConfig:
    assert isinstance(config.model, TransformerConfig)
    return config.model
