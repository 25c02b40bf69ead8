"""The exact loss and gradient of the minimal induction head, by hand.

Contents are data, so all that layer 2 asks of a token is known before training: m_k = c_k·c_T, the match of a token
with the target T. With A the pattern of layer 1, Δ_j = 1 iff T − j is odd (`models.induction_head` has the model):

    A_jk = e^{β₁ δ_{j−1,k}} / Σ_{l≤j} e^{β₁ δ_{j−1,l}},   r_j = Σ_k A_jk m_k      what the buffers match
    s_j  = α r_j + β₂ Δ_j,  a = softmax(s),  w = Σ_j a_j c_j                       what the classifier reads beside c_T

    ∂ℒ/∂a_j = c_j·∂ℒ/∂w,  ∂ℒ/∂s_j = a_j (∂ℒ/∂a_j − Σ_k a_k ∂ℒ/∂a_k)
    ∂ℒ/∂α = Σ_j ∂ℒ/∂s_j r_j,  ∂ℒ/∂β₂ = Σ_j ∂ℒ/∂s_j Δ_j
    ∂ℒ/∂β₁ = Σ_j ∂ℒ/∂s_j α A_{j,j−1} (m_{j−1} − r_j)                                the softmax of layer 1

summed over sequences, ℒ being their mean.
"""

import torch
from torch import Tensor

from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError
from mechinterp.models.parameters import content_dim
from mechinterp.tasks.base import Batch
from mechinterp.training.classifier import classifier_gradients
from mechinterp.training.flat import FlatEngine


class InductionHeadEngine(FlatEngine):
    """Advances the parameters of the minimal induction head by SGD."""

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor]):
        super().__init__(config, parameters)
        self._content_dim, T = content_dim(config), config.task.n_pos
        self._causal = self._flat.new_full((T, T), -torch.inf).triu(1)
        self._previous = self._flat.new_ones(T - 1).diag(-1)
        self._odd = ((T - 1 - torch.arange(T)) % 2).to(self._flat.dtype)

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        labels, p, g = batch.labels, self.parameters, self._gradients
        if not bool(((labels >= 0) & (labels < self._n_labels)).all()):
            raise MechinterpError(f"the batch's labels must be numbers from 0 to {self._n_labels - 1}")
        content = (batch.inputs if batch.table is None else batch.table.contents())[..., -self._content_dim :]
        content = content.to(self._flat.dtype)
        beta1, alpha, beta2 = (p[f"blocks.{name}"] for name in ("0.attn.beta1", "1.attn.alpha", "1.attn.beta2"))
        target = content[:, -1]

        A = torch.softmax(self._causal + beta1 * self._previous, dim=-1)
        to_previous = A.diagonal(-1)
        match = torch.bmm(content, target[:, :, None])[:, :, 0]
        r = match @ A.T
        a = torch.softmax(alpha * r + beta2 * self._odd, dim=-1)
        w = torch.bmm(a[:, None], content)[:, 0]

        x = torch.cat([target, w], dim=1)
        loss, correct, dx = classifier_gradients(p, g, x, labels, self._new)
        dw = dx[:, self._content_dim :]
        da = torch.bmm(content, dw[:, :, None])[:, :, 0]
        ds = a * (da - (a * da).sum(dim=1, keepdim=True))
        g["blocks.1.attn.alpha"][0] = (ds * r).sum()
        g["blocks.1.attn.beta2"][0] = (ds @ self._odd).sum()
        g["blocks.0.attn.beta1"][0] = (alpha * ds[:, 1:] * to_previous * (match[:, :-1] - r[:, 1:])).sum()
        return loss.item(), correct.item() / len(batch), g
