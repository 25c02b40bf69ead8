"""The exact loss and gradient of the additive model (`models.additive`), by hand.

With m_j = x_j·x_q, r = Σ_j p_j ℓ_j, σ = ±1 the target's label and B sequences,

    z = φ(x_q) + w r,  ℒ = ⟨log(1 + e^{−σ z})⟩,  ∂ℒ/∂z = −σ (1 + e^{σ z})⁻¹ / B

    ∂ℒ/∂w = Σ ∂ℒ/∂z r,  ∂ℒ/∂β = Σ ∂ℒ/∂z w (Σ_j p_j m_j ℓ_j − r Σ_j p_j m_j)

summed over sequences; φ's gradient is that of any classifier. Of a context the products m_j are all that is computed.
"""

import torch
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.models.additive import ADDITIVE
from mechinterp.tasks.base import Batch
from mechinterp.training.classifier import backward, hidden_layers
from mechinterp.training.flat import FlatEngine


class AdditiveEngine(FlatEngine):
    """Advances β, w and the MLP by SGD; the same step as autograd's."""

    def gradients(self, batch: Batch) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        labels, g = batch.labels, self._gradients
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise MechinterpError("the batch's labels must be 0 or 1")
        beta, w = (self.parameters[name] for name in ADDITIVE)
        tokens = batch.inputs.to(self._flat.dtype)
        items, shown = tokens[:, :-1, :-2], tokens[:, :-1, -2]
        target, sign = tokens[:, -1, :-2], (1 - 2 * labels).to(self._flat.dtype)

        m = torch.bmm(items, target[:, :, None])[:, :, 0]
        p = torch.softmax(beta * m, dim=-1)
        r = (p * shown).sum(dim=1)
        hidden = hidden_layers(self.parameters, target, self._new)
        z = (hidden[-1] @ self.parameters["classifier.readout.W"])[:, 0] + w * r
        dz = -sign * torch.sigmoid(-sign * z) / len(labels)
        pm = p * m
        g["blocks.0.attn.w"][0] = dz @ r
        g["blocks.0.attn.beta"][0] = w[0] * (dz @ ((pm * shown).sum(dim=1) - r * pm.sum(dim=1)))
        backward(self.parameters, g, hidden, dz[:, None], self._new)
        loss = torch.nn.functional.softplus(-sign * z).mean()
        correct = ((z >= 0) == (sign > 0)).sum()
        return loss.item(), correct.item() / len(batch), g
