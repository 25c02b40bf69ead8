"""The presets' first 200 steps give the same bits as when version 0.4.0 was released.

What may change bits apart from this project's code (library builds, the processor) is recorded beside the digests. In
that environment the digests must be equal. In any other the initial weights must be, which are drawn without matrix
products, and the weights of step 20 must agree in norm to five digits. Later ones need not: by step 50 rounding has
decided on which side of a ReLU some hidden unit's input falls, and by step 200 biases differ by one percent.
"""

import json
from pathlib import Path

import pytest

import mechinterp as mi
from mechinterp.torch_state import torch_threads
from mechinterp.training.recording import environment

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "preset_digests.json").read_text())


@pytest.fixture
def one_thread():
    with torch_threads(1):
        yield


@pytest.mark.parametrize("preset", RECORDED["presets"])
def test_first_200_steps(preset, tmp_path, one_thread):
    config = mi.RunConfig.preset(preset).updated({"training.steps": 200, "checkpoints.every": 20})
    run = mi.train(config, tmp_path / "run.h5", progress=False)
    expected, here = RECORDED["presets"][preset], environment()
    assert run.digest(0) == expected["digests"]["0"]
    norms = {name: float(value.double().norm()) for name, value in run.weights(20).items()}
    assert norms == pytest.approx(expected["norms"], rel=1e-5, abs=1e-6)
    if all(here[name] == value for name, value in RECORDED["environment"].items()):
        assert {str(step): run.digest(step) for step in (0, 100, 200)} == expected["digests"]
