"""A training loop as a user has it: a small network of their own, data by step, and the recorder."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import mechinterp as mi
from mechinterp.run import RecordedRun

STEPS = 60


class Gated(nn.Module):
    """A network that this package does not know: means of a normalisation, a mask of −∞ and a trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 12)
        self.norm = nn.BatchNorm1d(12)
        self.mask = nn.Parameter(torch.ones(12))
        self.out = nn.Linear(12, 7)
        self.register_buffer("forbidden", torch.triu(torch.full((3, 3), -torch.inf), 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.embed(tokens)) * self.mask)


def made() -> tuple[Gated, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = Gated()
    return model, torch.optim.AdamW(model.parameters(), 1e-2)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """One update on the data of a step; the loss."""
    tokens = torch.randint(7, (16,), generator=torch.Generator().manual_seed(step))
    loss = functional.cross_entropy(model(tokens), (tokens + 1) % 7)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def train(path: Path, *, steps: int = STEPS, resume: bool = False, every: int = 10, pause: float = 0.0) -> RecordedRun:
    """A recorded run of the loop; `resume` goes on with what is there."""
    import time

    model, optimizer = made()
    with mi.record(path, model, optimizer=optimizer, schedule=mi.Schedule(every=every), resume=resume) as recorder:
        for step in range(recorder.last_step + 1, steps):
            recorder(step, loss=update(model, optimizer, step))
            time.sleep(pause)
    return mi.open_run(path, build=Gated)
