"""Prefix matching is 1 of a perfect induction pattern and that of chance of a uniform one."""

import pytest
import torch

from mechinterp.config import InductionTokensConfig
from mechinterp.measures import Observation
from mechinterp.measures.prefix_matching import after_earlier_occurrences, prefix_matching
from mechinterp.tasks import InductionTokensTask

TASK = InductionTokensTask(InductionTokensConfig(n_tokens=20, n_pos=17, min_period=4, max_period=8), seed=0)


def seen_with(pattern: torch.Tensor, batch) -> Observation:
    return Observation(batch, torch.zeros(len(batch), 20), {"blocks.1.attn.hook_pattern": pattern})


def test_what_followed_before_is_after_the_same_token():
    tokens = torch.tensor([[3, 5, 3, 4, 3]])
    expected = torch.zeros(5, 5)
    expected[2, 1] = expected[4, 1] = expected[4, 3] = 1  # 5 and then 4 followed a 3
    assert torch.equal(after_earlier_occurrences(tokens)[0], expected)


def test_a_perfect_head_scores_one_and_a_previous_token_head_nothing():
    batch = TASK.sample("icl", 50)
    perfect = after_earlier_occurrences(batch.inputs)
    perfect = perfect / perfect.sum(dim=-1, keepdim=True).clamp(min=1)
    previous = torch.diag(torch.ones(16), -1).expand(50, 17, 17)
    both = torch.stack([previous, perfect], dim=1)
    assert float(prefix_matching(seen_with(both, batch), 1)) == pytest.approx(1)
    assert float(prefix_matching(seen_with(previous[:, None], batch), 1)) == 0


def test_uniform_attention_finds_as_many_as_there_are():
    batch = TASK.sample("icl", 400)
    uniform = torch.ones(17, 17).tril() / torch.arange(1, 18)[:, None]
    periods = batch.roles["first"].sum(dim=1)
    shares = [(i // int(p)) / (i + 1) for p in periods for i in range(int(p), 17)]
    found = prefix_matching(seen_with(uniform.expand(400, 1, 17, 17), batch), 1)
    assert float(found) == pytest.approx(sum(shares) / len(shares), rel=1e-5)
