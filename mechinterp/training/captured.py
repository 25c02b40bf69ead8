"""The fused step in torch operations, for accelerators: on CUDA whole steps are captured as one graph and replayed.

Equations and names are those of `fused.py`. There a batch's parts run through compiled loops; here every line is one
operation over the whole batch, and layer 1's scores take two products with all tokens. No operation waits for the
host, none allocates once the buffers exist, so a step can be captured. On the CPU the same operations run one by one.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.tasks.base import Batch
from mechinterp.training.classifier import classifier_gradients
from mechinterp.training.flat import FlatEngine


class CapturedEngine(FlatEngine):
    """Advances the parameters by SGD, the same step as `HookedEngine`, on any device that torch has.

    It computes the networks that `FusedEngine` computes.
    """

    name = "captured"

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor], device: str = "cpu"):
        super().__init__(config, parameters, device)
        self._buffers: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: tuple[Tensor, Tensor] | None = None

    def step(self, batch: Batch) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update."""
        inputs, labels = self._load(batch)
        if self._flat.is_cuda:
            if self._graph is None:
                self._capture(inputs, labels)
            assert self._graph is not None
            self._graph.replay()
        else:
            self._result = self._advance(inputs, labels)
        assert self._result is not None
        loss, correct = self._result
        return loss.item(), correct.item() / len(batch)

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        loss, correct = self._forward_backward(*self._load(batch))
        return loss.item(), correct.item() / len(batch), self._gradients

    def _load(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch, in buffers on the device that a captured graph reads; another shape needs another graph."""
        shape = batch.inputs.shape
        if len(batch.labels) != shape[0] or not ((batch.labels >= 0) & (batch.labels < self._n_labels)).all():
            raise MechinterpError(f"the batch's labels must be {shape[0]} numbers from 0 to {self._n_labels - 1}")
        if self._buffers.get("inputs", batch.inputs).shape != shape:
            self._buffers.clear()
            self._graph = None
        if "labels" not in self._buffers:
            self._buffers["labels"] = batch.labels.to(self._flat.device, copy=True)
        return self.buffer("inputs", *shape).copy_(batch.inputs), self._buffers["labels"].copy_(batch.labels)

    def _advance(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        result = self._forward_backward(inputs, labels)
        self._descend()
        return result

    def _capture(self, inputs: Tensor, labels: Tensor) -> None:
        """Record a step as a graph. It needs steps run beforehand, on a stream of their own; they are undone."""
        before, stream = self._flat.clone(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._advance(inputs, labels)
        finally:
            torch.cuda.current_stream().wait_stream(stream)
            self._flat.copy_(before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
            self._result = self._advance(inputs, labels)
        self._graph = graph

    def _forward_backward(
        self, u: Float[Tensor, "batch pos d_model"], labels: Int[Tensor, "batch"]
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
        y = torch.mm(u.view(B * T, d), M, out=buffer("y", B * T, d)).view(B, T, d)
        scores = torch.bmm(y, across, out=buffer("scores", B, T, T)).add_(self._causal_mask(T))
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

        loss, correct, dw = classifier_gradients(p, g, w, labels, buffer)

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
        dy = torch.bmm(dscores, u, out=y).view(B * T, d)
        dM = torch.mm(u.view(B * T, d).T, dy, out=M)
        torch.mm(dM, K1, out=dQ1)
        torch.mm(dM.T, Q1, out=dK1)
        return loss, correct

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
