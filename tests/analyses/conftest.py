"""Studies whose runs are made up, for what analyses make of them."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mechinterp.config import RunConfig
from mechinterp.studies.study import Study

World = Callable[[RunConfig], pd.DataFrame]
"""What would be measured in a run: step × measure, among them IC and IWL accuracy."""


@pytest.fixture
def made_up(monkeypatch) -> Callable[[World], dict[str, RunConfig]]:
    """Studies have the outcomes of a world, without training; gives the configs of their runs, by id."""
    configs: dict[str, RunConfig] = {}

    def install(world: World) -> dict[str, RunConfig]:
        def table(study: Study, *arguments, **options) -> pd.DataFrame:
            configs.update({run.id: run.config for run in study.runs})
            rows = []
            for run in study.runs:
                end = world(run.config).iloc[-1]
                about = {"variant": run.variant, "seed": run.seed, "run": run.id, "status": "done", "error": None}
                about |= {"transition": False, "step": np.nan, "after": np.nan, "iwl_accuracy_step": np.nan}
                ends = {f"final_{name}": end[name] for name in end.index if name.endswith(("_accuracy", "_loss"))}
                rows.append(about | ends)
            return pd.DataFrame(rows)

        def measured(study: Study, folder) -> dict[tuple[str, int], pd.DataFrame]:
            return {(run.variant, run.seed): world(run.config) for run in study.runs}

        monkeypatch.setattr("analyses._common.run_study", table)
        monkeypatch.setattr("analyses._common.measured", measured)
        monkeypatch.setattr("analyses._common.write_study_report", lambda study, table, folder, path: path)
        return configs

    return install
