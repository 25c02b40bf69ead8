"""One step of SGD for networks of another convention (`models.conventions`), at nearly the fused engine's speed.

The fused engine computes loss and gradient of the plain network; the chain rule takes that gradient back to the
parameters that are trained. With primes for the plain network's:

    W_Q′ = s W_Q:      ∂ℒ/∂W_Q = s ∂ℒ/∂W_Q′
    W_V′ = W_V W_O:    ∂ℒ/∂W_V = ∂ℒ/∂W_V′ W_Oᵀ,   ∂ℒ/∂W_O = W_Vᵀ ∂ℒ/∂W_V′
    b′ = b·1:          ∂ℒ/∂b = Σ_j ∂ℒ/∂b′_j
    W′ = (W/2, −W/2):  ∂ℒ/∂W = (∂ℒ/∂W′₀ − ∂ℒ/∂W′₁)/2, the readout's
"""

from torch import Tensor

from mechinterp.config import RunConfig, TransformerConfig
from mechinterp.models.conventions import attn_scale, folded, plain
from mechinterp.tasks.base import Batch
from mechinterp.training.flat import FlatEngine
from mechinterp.training.fused import FusedEngine
from mechinterp.training.fused_one_layer import OneLayerEngine
from mechinterp.training.interventions import Under


class FoldedEngine(FlatEngine):
    """Advances the parameters of a network of one head, in one layer or two, of any convention by SGD."""

    name = "folded"

    def __init__(self, config: RunConfig, parameters: dict[str, Tensor]):
        assert isinstance(config.model, TransformerConfig)
        super().__init__(config, parameters)
        self._config, self._model = config, config.model
        engine = OneLayerEngine if config.model.n_layers == 1 else FusedEngine
        self._plain = engine(plain(config), folded(config, parameters))

    def step(self, batch: Batch, under: Under | None = None) -> tuple[float, float]:
        """p ← (1−shrinkage)·p − lr·∂ℒ/∂p; returns loss ℒ and accuracy on the batch, before the update."""
        loss, accuracy, _ = self.gradients(batch, under)
        self._descend()
        return loss, accuracy

    def gradients(self, batch: Batch, under: Under | None = None) -> tuple[float, float, dict[str, Tensor]]:
        """Mean cross-entropy at the target, accuracy, and the gradient of every parameter (overwritten next time)."""
        for name, value in folded(self._config, self.parameters).items():
            self._plain.parameters[name].copy_(value)
        arguments = (batch,) if under is None else (batch, under)
        loss, accuracy, plain_gradients = self._plain.gradients(*arguments)
        for name, gradient in self._gradients.items():
            if name.endswith("W_Q") and self._model.use_attn_scale:
                gradient.copy_(plain_gradients[name]).mul_(attn_scale(gradient))
            elif name.endswith("W_V") and self._model.output_matrix == "trained":
                W_O = self.parameters[name.replace("W_V", "W_O")]
                gradient.copy_(plain_gradients[name] @ W_O.mT)
            elif name.endswith("W_O"):
                name = name.replace("W_O", "W_V")
                gradient.copy_(self.parameters[name].mT @ plain_gradients[name])
            elif name.endswith(".b") and self._model.classifier_bias == "shared":
                gradient.copy_(plain_gradients[name].sum(dim=0, keepdim=True))
            elif name == "classifier.readout.W" and self._model.readout == "difference":
                gradient.copy_(plain_gradients[name][:, :1] - plain_gradients[name][:, 1:]).div_(2)
            else:
                gradient.copy_(plain_gradients[name])
        return loss, accuracy, self._gradients
