"""What training minimises, weight decay apart: the loss of every answer of a batch."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mechinterp.config.training import TrainingConfig
from mechinterp.tasks.base import Batch


def trained_answers(training: TrainingConfig, batch: Batch) -> Int[Tensor, "batch *pos"]:
    """The correct labels that are trained: the target's [batch], or those of positions [batch, pos], −1 where there is
    none."""
    return batch.labels if training.loss_at == "target" else batch.answers_at(training.loss_at)


def answer_losses(
    training: TrainingConfig, logits: Float[Tensor, "*answers n_labels"], labels: Int[Tensor, "*answers"]
) -> Float[Tensor, "*answers"]:
    """The loss of every answer: cross-entropy (nats), or the mean squared error over labels; 0 where there is none."""
    if training.loss == "mse":
        correct = functional.one_hot(labels.clamp(min=0), logits.shape[-1])
        return (logits - correct).square().mean(dim=-1) * (labels >= 0)
    flat = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=-1)
    return flat.view(labels.shape)
