"""Direct logit attribution and the logit lens: what components write into the answer, and what the stream already says.

The output reads the last residual stream x = Σ_s x^s, the sum of what the embedding, positions, heads, MLPs and biases
write, as logits = N(x) W_U + b_U. With the scale σ of the normalisation N frozen they are linear in x, and the lead of
the answer over a wrong label is a sum over the components, exactly: **direct logit attribution** (Elhage et al. 2021;
Wang et al. 2023 use it on logit differences). The **logit lens** (nostalgebraist 2020) gives the residual stream
between layers to the output as if it were the last, with its own scale.
"""

import pandas as pd
import torch
from torch import Tensor, nn

from mechinterp.circuits.activations import network_of
from mechinterp.circuits.edges import Scale, receivers, senders
from mechinterp.circuits.metrics import Metric
from mechinterp.errors import MechinterpError
from mechinterp.models.forward import Activations, run_with_cache
from mechinterp.models.network import Network
from mechinterp.tasks.corruption import Pairs
from mechinterp.torch_state import torch_defaults


@torch_defaults()
def logit_attribution(model: Network | nn.Module, pairs: Pairs) -> pd.DataFrame:
    """One row per ``component``: ``lead``, what it adds to the logit of the answer minus that of the wrong label.

    Mean over the clean sequences, at the target, in logits. Components are ``embed``, heads (``layer.head``),
    ``layer.mlp`` (with its bias), and ``constant``, which is positions, the other biases and the normalisation's shift;
    they add up to the network's lead.
    MechinterpError for a classifier with ReLU layers, whose logits are no sum.
    """
    network = network_of(model)
    if network.depth and not network.model.answers_everywhere:
        raise MechinterpError(
            f"the classifier has {network.depth} ReLU layers, so its logits are no sum over what components write: use"
            " patch or paths"
        )
    with torch.no_grad():
        run = run_with_cache(network, pairs.clean.inputs)
        output = receivers(run)[-1]
        rows = {}
        for sender, written in senders(run, output).items():
            read = output.reads(run, written, Scale.frozen)
            at_target = (
                read[:, -1] if output.through == "unembed" else read @ network.parameters["classifier.readout.W"]
            )
            rows[sender] = _lead(at_target, pairs)
        rows["constant"] = _lead(run.logits, pairs) - sum(rows.values())
    return pd.DataFrame({"component": list(rows), "lead": list(rows.values())})


@torch_defaults()
def logit_lens(model: Network | nn.Module, pairs: Pairs) -> pd.DataFrame:
    """One row per ``hook`` of the residual stream: the ``lead`` of the answer over the wrong label, and the
    ``accuracy``, of the output on the target's residual stream there; means over the clean sequences."""
    network, rows = network_of(model), []
    with torch.no_grad():
        run = run_with_cache(network, pairs.clean.inputs)
        for hook in [name for name in network.hook_names if "hook_resid_" in name]:
            logits = _at_end(run, run[hook])
            accuracy = float(Metric.accuracy.of(logits, pairs.answers, pairs.wrong_labels))
            rows.append({"hook": hook, "lead": _lead(logits, pairs), "accuracy": accuracy})
    return pd.DataFrame(rows)


def _at_end(run: Activations, residual: Tensor) -> Tensor:
    """Logits of the output on a residual stream."""
    return run.forward_from(f"blocks.{run.n_layers - 1}.hook_resid_post", residual)


def _lead(logits: Tensor, pairs: Pairs) -> float:
    return float(Metric.logit_difference.of(logits, pairs.answers, pairs.wrong_labels))
