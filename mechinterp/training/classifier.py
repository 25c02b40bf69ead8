"""The classifier's loss and gradient, written out: what all engines by hand end with."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Buffer = Callable[..., Tensor]


def classifier_gradients(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    x: Float[Tensor, "batch fan_in"],
    labels: Int[Tensor, "batch"],
    buffer: Buffer,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], Float[Tensor, "batch fan_in"]]:
    """Mean cross-entropy ℒ, number of correct answers and ∂ℒ/∂x; fills the classifier's gradients.

    `buffer(name, *shape)` gives memory for what lies between.
    """
    n, hidden = len(labels), hidden_layers(parameters, x, buffer)
    logits = hidden[-1] @ parameters["classifier.readout.W"]
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(1, labels[:, None]).mean()
    correct = (logits.argmax(dim=-1) == labels).sum()
    dlogits = log_p.exp_().scatter_add_(1, labels[:, None], log_p.new_full((n, 1), -1.0)).div_(n)
    return loss, correct, backward(parameters, gradients, hidden, dlogits, buffer)


def hidden_layers(
    parameters: Mapping[str, Tensor], x: Float[Tensor, "batch fan_in"], buffer: Buffer
) -> list[Float[Tensor, "batch _"]]:
    """What the classifier reads, and the activations of its ReLU layers."""
    hidden = [x]
    for i in range(sum(name.endswith(".b") for name in parameters)):
        W = parameters[f"classifier.layers.{i}.W"]
        out = buffer(f"hidden{i}", len(x), W.shape[1])
        hidden.append(torch.mm(hidden[-1], W, out=out).add_(parameters[f"classifier.layers.{i}.b"]).relu_())
    return hidden


def backward(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    hidden: Sequence[Float[Tensor, "batch _"]],
    dlogits: Float[Tensor, "batch logits"],
    buffer: Buffer,
) -> Float[Tensor, "batch fan_in"]:
    """∂ℒ/∂x from ∂ℒ/∂logits; fills the classifier's gradients, and overwrites the activations."""
    n, readout = len(dlogits), parameters["classifier.readout.W"]
    torch.mm(hidden[-1].T, dlogits, out=gradients["classifier.readout.W"])
    dh = torch.mm(dlogits, readout.T, out=buffer("dhidden", n, readout.shape[0]))
    for i in reversed(range(len(hidden) - 1)):
        W = parameters[f"classifier.layers.{i}.W"]
        dh.mul_(hidden[i + 1].sign_())  # ReLU's slope; the activations themselves are not needed any more
        torch.mm(hidden[i].T, dh, out=gradients[f"classifier.layers.{i}.W"])
        torch.sum(dh, dim=0, out=gradients[f"classifier.layers.{i}.b"])
        dh = torch.mm(dh, W.T, out=buffer(f"dhidden{i}", n, W.shape[0]))
    return dh
