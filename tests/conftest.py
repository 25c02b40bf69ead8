"""Fixtures: small configs and runs that several test modules share."""

from collections.abc import Iterator

import pytest

from tests.type_checks import Calls  # before mechinterp, whose functions it checks

import mechinterp as mi  # isort: skip
from mechinterp.studies import processes

TINY = {
    "task.n_classes": 8,
    "task.n_labels": 4,
    "task.n_pairs": 3,
    "task.content_dim": 11,
    "task.position_dim": 13,
    "task.n_novel_classes": 8,
    "task.p_in_context": 0.5,
    "model.classifier_width": 19,
    "model.classifier_depth": 2,
    "training.batch_size": 16,
    "training.steps": 20,
    "training.learning_rate": 0.1,
    "training.weight_decay": 0.0,
    "checkpoints.every": 2,
}

SPIKING = {
    "task.kind": "paired_items",
    "task.n_items": 40,
    "task.n_pairs": 9,
    "task.item_dim": 7,
    "model.n_layers": 1,
    "model.classifier_width": 16,
    "training.batch_size": 16,
    "training.steps": 600,
    "training.learning_rate": 0.3,
    "checkpoints.every": 50,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-types", action="store_true", help="check annotations in every call (tests/type_checks.py)")


def pytest_configure(config: pytest.Config) -> None:
    Calls.all_checked = bool(config.getoption("--all-types"))


LONG = ("tests/test_docs.py", "tests/report/test_browser.py", "tests/store/test_faults.py", "tests/cli/test_startup.py")
"""Files that take longest: begun last, they would keep one worker busy while the other has nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_runtest_setup() -> None:
    Calls.test += 1


@pytest.fixture(scope="module")
def kept_workers() -> Iterator[None]:
    """The workers of a study stay for the next one of the module: starting one takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes, "end", lambda: None)
        yield
    processes.end()


@pytest.fixture(scope="session")
def tiny_config() -> mi.RunConfig:
    """A network of 24 dimensions on a task of 7 tokens: a step takes about a millisecond."""
    return mi.RunConfig().updated(TINY)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> mi.Run:
    """A finished run of 11 checkpoints. Tests only read it."""
    return mi.train(tiny_config, tmp_path_factory.mktemp("runs") / "tiny.h5", progress=False)


@pytest.fixture(scope="session")
def spiking_run(tmp_path_factory) -> mi.Run:
    """A run at too large a learning rate, whose loss spikes. Tests only read it."""
    return mi.train(mi.RunConfig().updated(SPIKING), tmp_path_factory.mktemp("runs") / "spiking.h5", progress=False)
