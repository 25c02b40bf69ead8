"""What the hooked view takes from TransformerLens, of version 3.9 or 4.

No other module imports TransformerLens, which takes seconds. Version 4 has no HookedTransformer any more, and none of
its parts.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from mechinterp.errors import MechinterpError

try:
    MAJOR = int(version("transformer-lens").split(".")[0])
    """The installed version's first number."""
except PackageNotFoundError:
    raise MechinterpError(
        "a hooked model is one of TransformerLens, which is not installed: pip install -c constraints.txt"
        " transformer-lens; all else works without it, on run.network(step)"
    ) from None

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformer_lens import ActivationCache as ActivationCache
    from transformer_lens import FactoredMatrix as FactoredMatrix
    from transformer_lens import HookedRootModule as HookedRootModule
    from transformer_lens.hook_points import HookPoint as HookPoint
    from transformer_lens.utilities.matrix import composition_scores as composition_scores

    if TYPE_CHECKING or MAJOR < 4:
        from transformer_lens import HookedTransformer as HookedTransformer
        from transformer_lens import HookedTransformerConfig as HookedTransformerConfig
        from transformer_lens.components.attention import Attention as Attention
