"""Loss and gradient of the classifier by formulas, which all analytic gradients share."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechinterp.errors import MechinterpError
from mechinterp.tasks.base import Batch


def require_labels(batch: Batch, n_labels: int, step: int | None = None) -> Int[Tensor, "batch"]:
    """The batch's labels; MechinterpError unless they, and other answers, are from 0 to n_labels − 1."""
    answers = batch.labels if batch.answers is None else batch.answers
    if not bool(((batch.labels >= 0) & (batch.labels < n_labels)).all()) or bool((answers >= n_labels).any()):
        where = "" if step is None else f" of step {step}"
        raise MechinterpError(f"the batch's labels{where} must be numbers from 0 to {n_labels - 1}")
    return batch.labels


def classifier_gradients(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    x: Float[Tensor, "batch fan_in"],
    labels: Int[Tensor, "batch"],
) -> tuple[Float[Tensor, ""], Int[Tensor, ""], Float[Tensor, "batch fan_in"]]:
    """Mean cross-entropy ℒ, number of correct answers and ∂ℒ/∂x; fills the classifier's gradients."""
    n, hidden = len(labels), hidden_layers(parameters, x)
    logits = readout(parameters, hidden[-1])
    log_p = torch.log_softmax(logits, dim=-1)
    loss = -log_p.gather(1, labels[:, None]).mean()
    correct = (logits.argmax(dim=-1) == labels).sum()
    dlogits = log_p.exp_().scatter_add_(1, labels[:, None], log_p.new_full((n, 1), -1.0)).div_(n)
    return loss, correct, classifier_backward(parameters, gradients, hidden, dlogits)


def hidden_layers(parameters: Mapping[str, Tensor], x: Float[Tensor, "batch fan_in"]) -> list[Float[Tensor, "batch _"]]:
    """The classifier's input, and the activations of its ReLU layers."""
    hidden = [x]
    for i in range(classifier_depth(parameters)):
        pre = torch.mm(hidden[-1], parameters[f"classifier.layers.{i}.W"])
        hidden.append(pre.add_(parameters[f"classifier.layers.{i}.b"]).relu_())
    return hidden


def readout(parameters: Mapping[str, Tensor], x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch logits"]:
    """Logits from the last hidden layer."""
    logits = x @ parameters["classifier.readout.W"]
    bias = parameters.get("classifier.readout.b")
    return logits if bias is None else logits + bias


def classifier_backward(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    hidden: Sequence[Float[Tensor, "batch _"]],
    dlogits: Float[Tensor, "batch logits"],
) -> Float[Tensor, "batch fan_in"]:
    """∂ℒ/∂x from ∂ℒ/∂logits; fills the classifier's gradients, and overwrites the activations."""
    torch.mm(hidden[-1].T, dlogits, out=gradients["classifier.readout.W"])
    if "classifier.readout.b" in gradients:
        torch.sum(dlogits, dim=0, out=gradients["classifier.readout.b"])
    dh = torch.mm(dlogits, parameters["classifier.readout.W"].T)
    for i in reversed(range(len(hidden) - 1)):
        dh.mul_(hidden[i + 1].sign_())  # ReLU's slope; the activations are not needed any more
        torch.mm(hidden[i].T, dh, out=gradients[f"classifier.layers.{i}.W"])
        torch.sum(dh, dim=0, out=gradients[f"classifier.layers.{i}.b"])
        dh = torch.mm(dh, parameters[f"classifier.layers.{i}.W"].T)
    return dh


def classifier_depth(parameters: Mapping[str, Tensor]) -> int:
    """Number of ReLU layers."""
    return sum(name.startswith("classifier.layers.") and name.endswith(".W") for name in parameters)
