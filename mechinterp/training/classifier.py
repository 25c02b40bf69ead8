"""What engines in torch operations share: the classifier's gradient by hand, and parameters in one flat buffer."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor


def classifier_gradients(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    x: Float[Tensor, "batch fan_in"],
    labels: Int[Tensor, "batch"],
    buffer: Callable[..., Tensor],
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], Float[Tensor, "batch fan_in"]]:
    """Mean cross-entropy ℒ, number of correct answers and ∂ℒ/∂x; fills the classifier's gradients.

    `buffer(name, *shape)` gives memory for what lies between.
    """
    n, depth = len(labels), sum(name.endswith(".b") for name in parameters)
    weights = [parameters[f"classifier.layers.{i}.W"] for i in range(depth)]
    hidden = [x]
    for i, W in enumerate(weights):
        out = buffer(f"hidden{i}", n, W.shape[1])
        hidden.append(torch.mm(hidden[-1], W, out=out).add_(parameters[f"classifier.layers.{i}.b"]).relu_())
    readout = parameters["classifier.readout.W"]
    logits = hidden[-1] @ readout
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(1, labels[:, None]).mean()
    correct = (logits.argmax(dim=-1) == labels).sum()
    dlogits = log_p.exp_().scatter_add_(1, labels[:, None], log_p.new_full((n, 1), -1.0)).div_(n)
    torch.mm(hidden[-1].T, dlogits, out=gradients["classifier.readout.W"])
    dh = torch.mm(dlogits, readout.T, out=buffer("dhidden", n, readout.shape[0]))
    for i, W in reversed(list(enumerate(weights))):
        dh.mul_(hidden[i + 1].sign_())  # ReLU's slope; the activations themselves are not needed any more
        torch.mm(hidden[i].T, dh, out=gradients[f"classifier.layers.{i}.W"])
        torch.sum(dh, dim=0, out=gradients[f"classifier.layers.{i}.b"])
        dh = torch.mm(dh, W.T, out=buffer(f"dhidden{i}", n, W.shape[0]))
    return loss, correct, dh


def flat_views(shapes: dict[str, tuple[int, ...]], kind: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One flat buffer of the dtype and device of `kind`, and named views of it."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    flat = kind.new_zeros(sum(sizes))
    pieces = flat.split(sizes)
    return flat, {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
