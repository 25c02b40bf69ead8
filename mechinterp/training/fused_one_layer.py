"""The exact loss and gradient of a network of one layer and one head, by hand.

Only the target attends, so one query per sequence is all that there is. With tokens x_j, the target t = x_T and
A = W_Q W_Kᵀ,

    q = A ᵀ t,  s_j = q·x_j,  p = softmax(s),  r = Σ_j p_j x_j,  u = t + W_Vᵀ r          what the classifier reads

    ∂ℒ/∂W_V = r ⊗ ∂ℒ/∂u,  ∂ℒ/∂r = W_V ∂ℒ/∂u,  ∂ℒ/∂p_j = x_j·∂ℒ/∂r
    ∂ℒ/∂s_j = p_j (∂ℒ/∂p_j − Σ_k p_k ∂ℒ/∂p_k),  ∂ℒ/∂q = Σ_j ∂ℒ/∂s_j x_j
    ∂ℒ/∂A = t ⊗ ∂ℒ/∂q,  ∂ℒ/∂W_Q = ∂ℒ/∂A W_K,  ∂ℒ/∂W_K = ∂ℒ/∂Aᵀ W_Q

summed over sequences, ℒ being their mean. The tokens are read four times, which is all that depends on their number.
"""

import torch
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.tasks.base import Batch
from mechinterp.training.classifier import classifier_gradients
from mechinterp.training.flat import FlatEngine


class OneLayerEngine(FlatEngine):
    """Advances the parameters of a plain network of one layer and one head by SGD."""

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        labels, g = batch.labels, self._gradients
        if not bool(((labels >= 0) & (labels < self._n_labels)).all()):
            raise MechinterpError(f"the batch's labels must be numbers from 0 to {self._n_labels - 1}")
        W_Q, W_K, W_V = (self.parameters[f"blocks.0.attn.W_{matrix}"][0] for matrix in "QKV")
        x = batch.inputs.to(self._flat.dtype)
        t = x[:, -1]

        q = (t @ W_Q) @ W_K.T
        p = torch.softmax(torch.bmm(x, q[:, :, None])[:, :, 0], dim=-1)
        r = torch.bmm(p[:, None], x)[:, 0]
        u = torch.addmm(t, r, W_V)
        loss, correct, du = classifier_gradients(self.parameters, g, u, labels, self._new)
        torch.mm(r.T, du, out=g["blocks.0.attn.W_V"][0])
        dp = torch.bmm(x, (du @ W_V.T)[:, :, None])[:, :, 0]
        ds = p * (dp - (p * dp).sum(dim=1, keepdim=True))
        dA = t.T @ torch.bmm(ds[:, None], x)[:, 0]
        torch.mm(dA, W_K, out=g["blocks.0.attn.W_Q"][0])
        torch.mm(dA.T, W_Q, out=g["blocks.0.attn.W_K"][0])
        return loss.item(), correct.item() / len(batch), g
