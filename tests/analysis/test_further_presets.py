"""Every analysis of every preset with an unembedding: a table, or one line why it does not apply."""

import pytest

import mechinterp as mi
from mechinterp.analysis.registry import ANALYSES
from mechinterp.config import PRESETS
from mechinterp.errors import MechinterpError
from mechinterp.models.registry import initial_parameters
from tests.analysis.test_checkpoints import SMALL

FURTHER = [name for name in PRESETS if mi.RunConfig.preset(name).model.answers_everywhere]
REFUSED = {
    ("singh2024", "order_parameters"): "tokens are content without position",
    ("edelman2024", "order_parameters"): "only item–label tokens are known to be position ⊕ content",
    ("induction-tokens", "order_parameters"): "only item–label tokens are known to be position ⊕ content",
    ("grokking", "order_parameters"): "only item–label tokens are known to be position ⊕ content",
    ("grokking", "evidence"): "this task's contexts show none",
    ("grokking", "heads"): "this task's contexts show none",
}


@pytest.fixture(scope="module")
def networks() -> dict[str, mi.Network]:
    """At their start, and narrow."""
    small = {"model.d_model": 16, "model.d_head": 4, "training.batch_size": 4}
    configs = {name: mi.RunConfig.preset(name).updated(small) for name in FURTHER}
    return {name: mi.Network(config, initial_parameters(config)) for name, config in configs.items()}


@pytest.mark.parametrize("preset", FURTHER)
@pytest.mark.parametrize("analysis", ANALYSES)
def test_an_analysis_applies_or_says_why_not(preset, analysis, networks):
    network, run = networks[preset], ANALYSES[analysis].function(analysis)
    task = mi.build_task(network.config)
    if (preset, analysis) in REFUSED:
        with pytest.raises(MechinterpError, match=REFUSED[preset, analysis]):
            run(network, task, **SMALL[analysis])
    else:
        assert len(run(network, task, **SMALL[analysis]))
