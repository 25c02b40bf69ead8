"""The architectures, by config section. To add one, write its file and section, and a line here."""

from torch import Tensor

from mechinterp.config import AdditiveConfig, InductionHeadConfig, RunConfig, TransformerConfig
from mechinterp.models.additive import Additive
from mechinterp.models.base import Architecture, Shapes
from mechinterp.models.induction_head import InductionHead
from mechinterp.models.transformer import Transformer
from mechinterp.torch_state import torch_defaults

ARCHITECTURES: dict[type, Architecture] = {
    TransformerConfig: Transformer(),
    InductionHeadConfig: InductionHead(),
    AdditiveConfig: Additive(),
}


def architecture_of(config: RunConfig) -> Architecture:
    """The architecture of a run's network."""
    return ARCHITECTURES[type(config.model)]


def parameter_shapes(config: RunConfig) -> Shapes:
    """Shape of every trained parameter, in the order of the network (`Architecture.parameter_shapes`)."""
    return architecture_of(config).parameter_shapes(config)


@torch_defaults()
def initial_parameters(config: RunConfig) -> dict[str, Tensor]:
    """The parameters before training, float32 (`Architecture.initial_parameters`)."""
    return architecture_of(config).initial_parameters(config)
