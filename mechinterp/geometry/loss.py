"""The training loss as a function of all parameters: its values, gradients, and products with its Hessian.

    L(θ) = (1/n) Σ_i ℓ_i(θ),    θ ∈ ℝ^P

over a fixed set of n sequences. A minibatch is given by the indices of its sequences.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechinterp.comparison.components import Component, components_of
from mechinterp.comparison.states import States
from mechinterp.config import RunConfig
from mechinterp.errors import MechinterpError, require_integer
from mechinterp.models.classifier import require_labels
from mechinterp.models.forward import Tap, run_unchecked
from mechinterp.models.network import Network, require_inputs
from mechinterp.models.registry import parameter_shapes
from mechinterp.run import Run
from mechinterp.tasks.base import Batch, Task
from mechinterp.torch_state import torch_defaults
from mechinterp.training.objective import answer_losses, trained_answers

MEMORY = 16 * 2**20
"""Bytes of the largest activation of what is computed together."""
BEYOND = 2**40
"""A training step that no run reaches: batches of this step and later ones are drawn anew."""


class Loss(ABC):
    """L(θ) of n sequences as a function of θ, and the point θ* at which it is looked at.

    A class of its own gives `losses`; all else follows. C points are computed in one batched call (`torch.func.vmap`).
    """

    point: Float[Tensor, "P"]
    """θ*."""
    n: int
    """Sequences in the fixed set."""

    @abstractmethod
    def losses(self, point: Float[Tensor, "P"], indices: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
        """ℓ_i(θ) of the sequences with these indices; differentiable in θ, also under `torch.func.vmap`."""

    @property
    def together(self) -> int:
        """How many pairs of a point and a sequence are computed at a time."""
        return 2**16

    def values(self, points: Float[Tensor, "C P"], indices: Int[Tensor, "C m"] | None = None) -> Float[Tensor, "C"]:
        """L at C points, of a minibatch each, or of all n sequences without `indices`."""
        result = points.new_zeros(len(points))
        with torch.no_grad():
            for rows, part, share in self._parts(len(points), indices):
                result[rows] += self._losses(points[rows], part).sum(dim=1) * share
        return result

    def gradients(
        self, points: Float[Tensor, "C P"], indices: Int[Tensor, "C m"] | None = None
    ) -> tuple[Float[Tensor, "C"], Float[Tensor, "C P"]]:
        """L and ∇L at C points, of a minibatch each, or of all n sequences without `indices`."""
        values, gradients = points.new_zeros(len(points)), torch.zeros_like(points)
        for rows, part, share in self._parts(len(points), indices):
            leaf = points[rows].detach().requires_grad_()
            value = self._losses(leaf, part).sum(dim=1) * share
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            values[rows] += value.detach()
            gradients[rows] += gradient
        return values, gradients

    def hessian_vectors(
        self,
        point: Float[Tensor, "P"],
        vectors: Float[Tensor, "K P"],
        indices: Int[Tensor, "K m"] | None = None,
    ) -> Float[Tensor, "K P"]:
        """∇²L(θ) v of K vectors v, exact: of a minibatch each, or of all n sequences without `indices`.

        The gradient of ∇L·v (Pearlmutter 1994). At a kink of ReLU the Hessian is that of one side.
        """
        products = torch.zeros_like(vectors)
        for rows, part, share in self._parts(len(vectors), indices):
            leaf = point.detach().expand_as(vectors[rows]).clone().requires_grad_()
            value = self._losses(leaf, part).sum() * share
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            if gradient.requires_grad:  # a linear loss has a constant gradient
                along = (gradient * vectors[rows]).sum()
                (product,) = torch.autograd.grad(along, leaf, allow_unused=True, materialize_grads=True)
                products[rows] += product
        return products

    def _losses(self, points: Float[Tensor, "C P"], indices: Int[Tensor, "*C m"]) -> Float[Tensor, "C m"]:
        return torch.func.vmap(self.losses, in_dims=(0, 0 if indices.ndim == 2 else None))(points, indices)

    def _parts(self, n_points: int, indices: Tensor | None) -> Iterator[tuple[slice, Tensor, float]]:
        """Rows of points with sequences to compute together, and the weight of a sequence in the mean."""
        m = self.n if indices is None else indices.shape[1]
        together = max(1, self.together)
        columns = min(m, together)
        n_rows = max(1, together // max(columns, 1))
        for first in range(0, n_points, n_rows):
            rows = slice(first, min(first + n_rows, n_points))
            for start in range(0, m, columns):
                stop = min(start + columns, m)
                part = torch.arange(start, stop) if indices is None else indices[rows, start:stop]
                yield rows, part, 1 / m


class NetworkLoss(Loss):
    """The training loss of a network on n sequences of its task's training distribution, without weight decay.

    ℓ_i is the loss that training takes (`training.loss`, `training.loss_at`): at the target, or the sum over a
    sequence's trained positions divided by their mean number. θ has the trained parameters, flattened one after the
    other in the order of `parameter_shapes`. Interventions of training on activations are left out.
    """

    @torch_defaults()
    def __init__(
        self, config: RunConfig, parameters: dict[str, Tensor], batch: Batch, dtype: torch.dtype = torch.float64
    ):
        """Computed in `dtype`: float64 for derivatives; float32 is about twice as fast."""
        require_labels(batch, config.task.n_labels)
        Network(config, parameters)  # raises for parameters that do not fit
        self.config, self.n = config, len(batch)
        self._shapes = parameter_shapes(config)
        self.point = torch.cat([parameters[name].detach().to(dtype).flatten() for name in self._shapes])
        inputs = batch.inputs
        if config.task.d_vocab:
            require_inputs(inputs, (), config.task.d_vocab)
        self._inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        self._answers = trained_answers(config.training, batch)
        answered = int((self._answers >= 0).sum())
        if not answered:
            raise MechinterpError(f"the sequences have no answer at training.loss_at = {config.training.loss_at!r}")
        self._weight = self.n / answered
        self._at_target = config.training.loss_at == "target"

    @classmethod
    @torch_defaults()
    def of_run(
        cls, run: Run, step: int | str, n: int = 512, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> "NetworkLoss":
        """That of a run's network at a stored step; the sequences depend on n and seed only (`training_sequences`).

        Of a run that was trained elsewhere, the cross-entropy at the target. MechinterpError for a run without a task
        or `Network`.
        """
        if not run.can_be_analysed:
            raise MechinterpError(f"{run.path}: its loss is not known as a function: {run.why_not_analysed}")
        batch = training_sequences(run.task, n, seed)
        states = States.of_run(run, [run.numbered(step)])
        return cls(states.config, states.at(0), batch, dtype)

    @property
    def components(self) -> list[Component]:
        """The components of θ, heads apart."""
        return components_of(self.config)

    def mask(self, component: Component) -> Bool[Tensor, "P"]:
        """The elements of θ that belong to a component."""
        parts = []
        for name, shape in self._shapes.items():
            inside = torch.zeros(shape, dtype=torch.bool)
            if name in component.parameters:
                component.part(name, inside).fill_(True)
            parts.append(inside.flatten())
        return torch.cat(parts)

    def parameters(self, point: Shaped[Tensor, "P"]) -> dict[str, Tensor]:
        """The trained parameters by name, as views of θ, or of what has a value for each of its elements."""
        sizes = [torch.Size(shape).numel() for shape in self._shapes.values()]
        parts = point.split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def losses(self, point: Float[Tensor, "P"], indices: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
        network = Network(self.config, self.parameters(point))
        activations = run_unchecked(network, self._inputs[indices], Tap(fused_attention=False), self._at_target)
        logits = activations.logits if self._at_target else activations["unembed.hook_out"]
        losses = answer_losses(self.config.training, logits, self._answers[indices]) * self._weight
        return losses if self._at_target else losses.sum(dim=1)

    @property
    def together(self) -> int:
        n_pos = self._inputs.shape[1]
        widths = [shape[-1] for shape in self._shapes.values() if shape]
        numbers = n_pos * max(*widths, n_pos * self.config.model.n_heads)
        return max(1, MEMORY // (self.point.element_size() * numbers))


def training_sequences(task: Task, n: int, seed: int = 0) -> Batch:
    """n sequences of the training distribution, which no training step of a run has drawn.

    Those of the evaluation set ``train`` where the task has one, and else a training batch of the step `BEYOND` + seed.
    """
    require_integer("n", n)
    require_integer("seed", seed, 0)
    if "train" in task.evaluations:
        return task.sample("train", n, seed)
    return task.train_batch(BEYOND + seed, n)


def sequence_blocks(n: int, count: int) -> list[Int[Tensor, "block m"]]:
    """The indices of n sequences in `count` blocks of neighbours, whose sizes differ by one at most.

    Blocks of one size are the rows of one tensor, so that they are computed together. MechinterpError for less than 2
    blocks, which have no spread, and for more than there are sequences.
    """
    require_integer("the number of blocks", count, 2)
    if count > n:
        raise MechinterpError(f"{n} sequences make no {count} blocks; take more sequences, or fewer blocks")
    m, longer = divmod(n, count)
    first, rest = torch.arange(n).split([longer * (m + 1), n - longer * (m + 1)])
    return [rows for rows in (first.view(longer, m + 1), rest.view(count - longer, m)) if len(rows)]
