"""Networks of other libraries as `Network`: HookedTransformer, GPT-2, nanoGPT and GPT-NeoX.

`recognise` tells from the names and shapes of a state dict, and from the network's settings, whether the forward pass
of `models.forward` computes it; `ForeignNetwork.parameters` converts states, and `require_same_answers` compares
logits. None of these libraries is imported.
"""

from mechinterp.models.foreign.answers import require_same_answers
from mechinterp.models.foreign.network import ForeignNetwork, recognise, settings_of

__all__ = ["ForeignNetwork", "recognise", "require_same_answers", "settings_of"]
