"""The exact loss and gradient of the two-layer, one-head network, by hand: no autograd, no hooks, no allocation.

Only the target's row of layer 2 is read, so by associativity neither layer's value matrix, nor layer 2's keys, need
act on every token. With u_i the tokens (rows), T the target, A = softmax(S) the pattern of layer 1 and a that of the
target in layer 2:

    S   = U M Uᵀ,  M = W_Q¹ W_K¹ᵀ                      scores of layer 1, one product with every token
    x   = Σ_m A_Tm u_m,    v_T = u_T + x W_V¹          the target after layer 1
    κ   = v_T W_Q² W_K²ᵀ,  ρ = κ W_V¹ᵀ                 what layer 2 looks for in v_j = u_j + Σ_m A_jm u_m W_V¹
    s_j = u_j·κ + Σ_m A_jm (u_m·ρ),  a = softmax(s)    scores and pattern of the target in layer 2
    z   = Σ_j a_j u_j + (Σ_m b_m u_m) W_V¹,  b = aᵀ A  the mean of v_j under a
    w   = v_T + z W_V²                                 what the classifier reads

The backward pass is the same chain reversed. Inputs need no gradient. What is left are three products over all
tokens (U M; scores; gradient of M) and a few dozen of size batch × d_model².
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.parameters import parameter_shapes
from mechinterp.tasks.base import Batch, TokenTable


class FusedEngine:
    """Advances the parameters by SGD; the same step as `HookedEngine`, several times faster.

    Parameters and gradients each lie in one flat buffer, of which the named tensors are views, so that an update is
    one operation.
    """

    name = "fused"

    @staticmethod
    def fits(config: RunConfig) -> bool:
        """Whether this network is one that the engine computes exactly: two layers of one head."""
        return config.model.n_layers == 2 and config.model.n_heads == 1

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor]):
        if not self.fits(config):
            raise MechinterpError("the fused engine computes networks of two layers with one head each")
        self._training = config.training
        self._depth = config.model.classifier_depth
        shapes = parameter_shapes(config)
        kind = parameters["classifier.readout.W"]
        self._flat, self.parameters = _views(shapes, kind)
        self._flat_gradient, self._gradients = _views(shapes, kind)
        for name, value in parameters.items():
            self.parameters[name].copy_(value)
        self._buffers: dict[str, Tensor] = {}

    def step(self, batch: Batch) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update."""
        loss, accuracy, _ = self.gradients(batch)
        if self._training.shrinkage:
            self._flat.mul_(1 - self._training.shrinkage)
        self._flat.sub_(self._flat_gradient, alpha=self._training.learning_rate)
        return loss, accuracy

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        layer1 = _TableScores(self, batch.table) if batch.table else _DenseScores(self, batch.inputs)
        loss, correct = self._forward_backward(batch.inputs, batch.labels, layer1)
        return loss.item(), correct.item() / len(batch), self._gradients

    def _forward_backward(
        self, u: Float[Tensor, "batch pos d_model"], labels: Int[Tensor, "batch"], layer1: "_Scores"
    ) -> tuple[Tensor, Tensor]:
        B, T, d = u.shape
        p, g, buffer = self.parameters, self._gradients, self.buffer
        Q1, K1, V1 = (p[f"blocks.0.attn.W_{m}"][0] for m in "QKV")
        Q2, K2, V2 = (p[f"blocks.1.attn.W_{m}"][0] for m in "QKV")
        dQ1, dK1, dV1 = (g[f"blocks.0.attn.W_{m}"][0] for m in "QKV")
        dQ2, dK2, dV2 = (g[f"blocks.1.attn.W_{m}"][0] for m in "QKV")
        across, target = u.transpose(1, 2), u[:, -1]
        # Layer 1: scores and pattern of every token.
        M = torch.mm(Q1, K1.T, out=buffer("M", d, d))
        scores = layer1.forward(M).add_(self._causal_mask(T))
        A = torch.softmax(scores, dim=-1, out=buffer("A", B, T, T))
        from_target = buffer("from_target", B, 2, T).copy_(A[:, -1:])  # twice: a product with one row is slower
        x = torch.bmm(from_target, u, out=buffer("x", B, 2, d))[:, 0]
        v = torch.mm(x, V1, out=buffer("v", B, d)).add_(target)

        # Layer 2: scores and pattern of the target, through κ and ρ. Pairs of vectors lie side by side, [batch, 2, …],
        # so that one product reads or mixes the tokens for both.
        q = torch.mm(v, Q2, out=buffer("q", B, d))
        seek = buffer("seek", B, 2, d)
        kappa, rho = seek.unbind(1)
        torch.mm(q, K2.T, out=kappa)
        torch.mm(kappa, V1.T, out=rho)
        seen = torch.bmm(seek, across, out=buffer("seen", B, 2, T))
        mix = buffer("mix", B, 2, T)
        a = mix[:, 0]
        scores2 = torch.bmm(A, seen[:, 1, :, None], out=buffer("scores2", B, T, 1))[:, :, 0].add_(seen[:, 0])
        a.copy_(torch.softmax(scores2, dim=-1))
        torch.bmm(mix[:, :1], A, out=mix[:, 1:])  # b
        mean_u, mean_m = torch.bmm(mix, u, out=buffer("mean", B, 2, d)).unbind(1)
        z = torch.mm(mean_m, V1, out=buffer("z", B, d)).add_(mean_u)
        w = torch.mm(z, V2, out=buffer("w", B, d)).add_(v)

        loss, correct, dw = self._classify(w, labels)

        # Layer 2, backward: value path, pattern, then κ and ρ.
        torch.mm(z.T, dw, out=dV2)
        dmean = buffer("dmean", B, 2, d)
        dz, dmean_m = dmean.unbind(1)
        torch.mm(dw, V2.T, out=dz)
        torch.mm(dz, V1.T, out=dmean_m)
        torch.mm(mean_m.T, dz, out=dV1)
        dseen = torch.bmm(dmean, across, out=buffer("dseen", B, 2, T))
        da = torch.bmm(A, dseen[:, 1, :, None], out=buffer("da", B, T, 1))[:, :, 0].add_(dseen[:, 0])
        back = buffer("back", B, 2, T)
        ds = back[:, 0]
        torch.mul(a, da.sub_((a * da).sum(dim=-1, keepdim=True)), out=ds)
        torch.bmm(back[:, :1], A, out=back[:, 1:])
        dkappa, drho = torch.bmm(back, u, out=buffer("dseek", B, 2, d)).unbind(1)
        dV1.addmm_(drho.T, kappa)
        dkappa.addmm_(drho, V1)
        torch.mm(dkappa.T, q, out=dK2)
        dq = torch.mm(dkappa, K2, out=buffer("dq", B, d))
        torch.mm(v.T, dq, out=dQ2)
        dv = dw.addmm_(dq, Q2.T)

        # Layer 1, backward: its pattern is read by b and by layer 2's scores, and in the target's row by v.
        dV1.addmm_(x.T, dv)
        dx = torch.mm(dv, V1.T, out=buffer("dx", B, d))
        outer = torch.stack([a, ds], dim=2)
        inner = torch.stack([dseen[:, 1], seen[:, 1]], dim=1)
        dA = torch.bmm(outer, inner, out=buffer("dA", B, T, T))
        dA[:, -1] += torch.bmm(dx[:, None], across, out=buffer("from_dx", B, 1, T))[:, 0]
        weighted = torch.mul(A, dA, out=buffer("weighted", B, T, T))
        dscores = dA.sub_(weighted.sum(dim=-1, keepdim=True)).mul_(A)
        dM = layer1.backward(dscores, u)
        torch.mm(dM, K1, out=dQ1)
        torch.mm(dM.T, Q1, out=dK1)
        return loss, correct

    def _classify(
        self, w: Float[Tensor, "batch d_model"], labels: Int[Tensor, "batch"]
    ) -> tuple[Tensor, Tensor, Float[Tensor, "batch d_model"]]:
        """Loss, number of correct answers and ∂ℒ/∂w; fills the classifier's gradients."""
        p, g, n = self.parameters, self._gradients, len(labels)
        weights = [p[f"classifier.layers.{i}.W"] for i in range(self._depth)]
        hidden = [w]
        for i, W in enumerate(weights):
            out = self.buffer(f"hidden{i}", n, W.shape[1])
            hidden.append(torch.mm(hidden[-1], W, out=out).add_(p[f"classifier.layers.{i}.b"]).relu_())
        readout = p["classifier.readout.W"]
        logits = hidden[-1] @ readout
        log_p = torch.log_softmax(logits, dim=-1)
        loss = -log_p.gather(1, labels[:, None]).mean()
        correct = (logits.argmax(dim=-1) == labels).sum()
        dlogits = log_p.exp_().scatter_add_(1, labels[:, None], log_p.new_full((n, 1), -1.0)).div_(n)
        torch.mm(hidden[-1].T, dlogits, out=g["classifier.readout.W"])
        dh = torch.mm(dlogits, readout.T, out=self.buffer("dhidden", n, readout.shape[0]))
        for i, W in reversed(list(enumerate(weights))):
            dh.mul_(hidden[i + 1].sign_())  # ReLU's slope; the activations themselves are not needed any more
            torch.mm(hidden[i].T, dh, out=g[f"classifier.layers.{i}.W"])
            torch.sum(dh, dim=0, out=g[f"classifier.layers.{i}.b"])
            dh = torch.mm(dh, W.T, out=self.buffer(f"dhidden{i}", n, W.shape[0]))
        return loss, correct, dh

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Scratch memory, allocated once: fresh pages cost more than the arithmetic on them."""
        held = self._buffers.get(name)
        if held is None or held.shape != shape:
            held = self._buffers[name] = self._flat.new_empty(shape)
        return held

    def _causal_mask(self, n_pos: int) -> Tensor:
        held = self._buffers.get("mask")
        if held is None or held.shape[-1] != n_pos:
            held = self._buffers["mask"] = self._flat.new_full((n_pos, n_pos), -torch.inf).triu_(1)
        return held


@runtime_checkable
class _Scores(Protocol):
    """Layer 1's scores S = U M Uᵀ as a function of M, and the gradient back to M."""

    def forward(self, M: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "batch pos pos"]: ...

    def backward(
        self, dscores: Float[Tensor, "batch pos pos"], u: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "d_model d_model"]: ...


class _DenseScores:
    """For any inputs: two products over all tokens, U M and Uᵀ(dS U)."""

    def __init__(self, engine: FusedEngine, u: Float[Tensor, "batch pos d_model"]):
        self._buffer, self._u = engine.buffer, u

    def forward(self, M: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "batch pos pos"]:
        B, T, d = self._u.shape
        y = torch.mm(self._u.reshape(B * T, d), M, out=self._buffer("y", B * T, d)).view(B, T, d)
        return torch.bmm(y, self._u.transpose(1, 2), out=self._buffer("scores", B, T, T))

    def backward(
        self, dscores: Float[Tensor, "batch pos pos"], u: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "d_model d_model"]:
        B, T, d = u.shape
        dy = torch.bmm(dscores, u, out=self._buffer("dy", B, T, d)).view(B * T, d)
        return torch.mm(u.reshape(B * T, d).T, dy, out=self._buffer("dM", d, d))


class _TableScores:
    """For tokens e(p) ⊕ c: position blocks of M are looked up, content blocks act once on every distinct content."""

    def __init__(self, engine: FusedEngine, table: TokenTable):
        self._buffer = engine.buffer
        self._rows, self._positions = table.rows, table.positions
        self._content = table.content.reshape(-1)

    def forward(self, M: Float[Tensor, "d_model d_model"]) -> Float[Tensor, "batch pos pos"]:
        (B, T), (R, D), d = self._positions.shape, self._rows.shape, len(M)
        P = d - D
        by_row = torch.mm(self._rows, M[P:], out=self._buffer("by_row", R, d))
        y = torch.index_select(by_row, 0, self._content, out=self._buffer("y", B * T, d))
        y += torch.index_select(M, 0, self._positions.reshape(-1), out=self._buffer("by_position", B * T, d))
        y = y.view(B, T, d)
        contents = torch.index_select(self._rows, 0, self._content, out=self._buffer("contents", B * T, D))
        window = self._positions[:, None].expand(B, T, T)
        scores = torch.gather(y, 2, window, out=self._buffer("scores", B, T, T))
        return scores.baddbmm_(y[:, :, P:], contents.view(B, T, D).transpose(1, 2))

    def backward(
        self, dscores: Float[Tensor, "batch pos pos"], u: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "d_model d_model"]:
        B, T, d = u.shape
        R, D = self._rows.shape
        dy = torch.bmm(dscores, u, out=self._buffer("dy", B, T, d)).view(B * T, d)
        dM = self._buffer("dM", d, d)
        dM[: d - D].zero_().index_add_(0, self._positions.reshape(-1), dy)
        by_row = self._buffer("by_row", R, d).zero_().index_add_(0, self._content, dy)
        torch.mm(self._rows.T, by_row, out=dM[d - D :])
        return dM


def _views(shapes: dict[str, tuple[int, ...]], kind: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One flat buffer of the dtype and device of `kind`, and named views of it."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    flat = kind.new_zeros(sum(sizes))
    pieces = flat.split(sizes)
    return flat, {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
