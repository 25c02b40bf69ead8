"""Whether a module computes what its conversion computes: names and shapes do not show another forward pass."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mechinterp.errors import UnrecognisedNetwork
from mechinterp.models.forward import run_with_cache
from mechinterp.models.network import Network
from mechinterp.torch_state import torch_defaults

MOST_POSITIONS = 256
"""The longest sequences that are compared."""
ROUNDING = 16.0
"""Largest difference, in multiples of what rounding to float32 changes in the conversion's logits."""
LEAST_TOLERANCE = 1e-5
"""Tolerance relative to the standard deviation of logits, where rounding changes less."""


@torch_defaults()
def require_same_answers(network: Network, module: nn.Module, *, n_sequences: int = 2, seed: int = 0) -> None:
    """UnrecognisedNetwork unless the module's logits are the network's, up to rounding, on a few random inputs.

    Inputs are tokens, or normal vectors for a network of vectors, of full length (at most `MOST_POSITIONS`) and of half
    of it. The module returns logits, a tuple that begins with them, or an object with ``logits``: at every position, or
    at the last one alone. The tolerance is `ROUNDING` times the largest difference between the network's own logits in
    float32 and float64, and at least `LEAST_TOLERANCE`; larger for modules of lower precision. Logits that are all
    equal, as with an unembedding of zeros, tell nothing of what is before it.

    The module's mode, the state of torch's random numbers and gradients are left as they are.
    """
    exact = Network(network.config, {name: value.double() for name, value in network.parameters.items()})
    single = Network(network.config, {name: value.float() for name, value in network.parameters.items()})
    task, rng = network.config.task, np.random.default_rng(seed)
    longest = min(task.n_pos, MOST_POSITIONS)
    for n_pos in dict.fromkeys((longest, (longest + 1) // 2)):
        inputs = _inputs(task.d_vocab, task.d_model, (n_sequences, n_pos), rng)
        with torch.no_grad():
            theirs = _answers(module, inputs)
            ours, rounded = _logits(exact, inputs), _logits(single, inputs)
        at_last = theirs.ndim == 2
        theirs = theirs[:, None] if at_last else theirs
        if theirs.ndim != 3 or theirs.shape[::2] != ours.shape[::2] or theirs.shape[1] not in (1, ours.shape[1]):
            raise UnrecognisedNetwork(
                f"the network answers with {tuple(theirs.shape)}; its conversion with {tuple(ours.shape)}"
                " [sequence, position, label]"
            )
        ours, rounded = (logits[:, -theirs.shape[1] :] for logits in (ours, rounded))
        precision = 1.0
        if theirs.is_floating_point():
            precision = max(torch.finfo(theirs.dtype).eps / torch.finfo(torch.float32).eps, 1.0)
        spread = float(ours.std(correction=0))
        largest = max(ROUNDING * float((rounded - ours).abs().max()), LEAST_TOLERANCE * spread) * precision
        difference = float((theirs.double().cpu() - ours).abs().max())
        if not difference <= largest:
            raise UnrecognisedNetwork(
                f"the network's logits differ from those of its conversion by up to {difference:.2g} (they vary by"
                f" {spread:.2g}; rounding explains {largest:.2g}): its forward pass is another than its names and"
                " settings say"
            )


def _inputs(d_vocab: int, d_token: int, shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Random tokens, or random vectors."""
    if d_vocab:
        return torch.from_numpy(rng.integers(0, d_vocab, shape))
    return torch.from_numpy(rng.standard_normal((*shape, d_token)))


def _logits(network: Network, inputs: Tensor) -> Tensor:
    """Logits [sequence, position, label], of a classifier at the last position alone, as float64."""
    run = run_with_cache(network, inputs.to(network.dtype) if inputs.is_floating_point() else inputs, ())
    logits = run.values.get("unembed.hook_out")
    return (run.logits[:, None] if logits is None else logits).double()


def _answers(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the module answers in evaluation mode, with its mode and torch's random numbers restored."""
    first = next(module.parameters(), torch.zeros(()))
    inputs = inputs.to(first.device, first.dtype) if inputs.is_floating_point() else inputs.to(first.device)
    training = {part: part.training for part in module.modules()}
    devices = [first.device] if first.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            module.eval()
            output: Any = module(inputs)
    except Exception as error:
        raise UnrecognisedNetwork(
            f"the network does not answer to random inputs {tuple(inputs.shape)} {inputs.dtype}:"
            f" {type(error).__name__}: {error}"
        ) from error
    finally:
        for part, mode in training.items():
            part.training = mode
    output = output[0] if isinstance(output, tuple) and output else output
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise UnrecognisedNetwork(
            f"the network answers with a {type(logits).__name__}; expected logits, a tuple that begins with them, or an"
            " object that has them"
        )
    return logits
