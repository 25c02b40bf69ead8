"""Executors of several machines, by Parsl (`pip install 'mechinterp[cluster]'`).

A TOML file says where workers run; all its keys but `provider` and `workers` are passed to that provider of Parsl:

    provider = "slurm"            # "local", "slurm" or "kubernetes"
    workers = 8                   # processes on each node
    partition = "cpu"
    nodes_per_block = 2
    walltime = "04:00:00"
    worker_init = "source /shared/venv/bin/activate"

Runs are written to the study's folder, which all machines must see.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mechinterp.errors import ConfigError, MechinterpError, unknown_name
from mechinterp.files import read_toml

PROVIDERS = {"local": "LocalProvider", "slurm": "SlurmProvider", "kubernetes": "KubernetesProvider"}
RETRIES = 3
"""How often a run whose worker was lost is given to another worker, which resumes it."""


@contextmanager
def cluster(path: str | Path | None = None, **settings: Any) -> Iterator[Executor]:
    """A Parsl executor for `run_study`, from a TOML file or the same settings.

    with cluster(provider="local", workers=2) as executor:
        mi.run_study(study, executor=executor)
    """
    settings = {**(read_toml(path) if path else {}), **settings}
    provider, workers = settings.pop("provider", "local"), settings.pop("workers", 1)
    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise ConfigError(f"{path or 'cluster'}: {unknown_name('provider', provider, PROVIDERS)}")
    if type(workers) is not int or workers < 1:
        raise ConfigError(f"{path or 'cluster'}: workers is {workers!r}; expected at least 1")
    try:
        import parsl.providers
        from parsl import Config
        from parsl.concurrent import ParslPoolExecutor
        from parsl.executors import HighThroughputExecutor
        from parsl.jobs.error_handlers import windowed_error_handler
    except ImportError as error:
        raise MechinterpError(f"studies on a cluster need Parsl: pip install 'mechinterp[cluster]' ({error})") from None
    try:
        defaults = {"init_blocks": 1, "max_blocks": 1} if provider == "local" else {}
        blocks = getattr(parsl.providers, PROVIDERS[provider])(**{**defaults, **settings})
    except Exception as error:  # Parsl documents no common error for bad settings
        raise ConfigError(f"{path or 'cluster'}: Parsl's {PROVIDERS[provider]}: {error}") from None
    with TemporaryDirectory(prefix="mechinterp-parsl-") as scratch:
        pool = HighThroughputExecutor(
            label="study",
            provider=blocks,
            max_workers_per_node=workers,
            block_error_handler=windowed_error_handler,  # a lost block is replaced, up to three in a row
            **_network(provider),
        )
        config = Config(executors=[pool], retries=RETRIES, run_dir=scratch, initialize_logging=False)
        with _interpreter_on_path(), ParslPoolExecutor(config) as executor:
            yield executor


@contextmanager
def _interpreter_on_path() -> Iterator[None]:
    """Puts this interpreter's folder on the PATH, where Parsl looks for the programs that it installed there."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _network(provider: str) -> dict[str, Any]:
    """Parsl's network settings; on this machine, a lost worker is noticed within seconds."""
    if provider != "local":
        return {}
    return {"address": "127.0.0.1", "heartbeat_period": 2, "heartbeat_threshold": 10}
