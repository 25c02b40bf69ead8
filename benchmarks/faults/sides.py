"""Fuzz of the files beside runs: outcomes, failures, tables and index of a study, and the caches of analyses.

A changed file must count for nothing, be made again, or be refused in a line that names it; no table may differ from
the one that was written.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

import mechinterp as mi
from benchmarks.faults import fuzz, scenarios
from mechinterp.errors import MechinterpError
from mechinterp.studies.jobs import jobs_of
from mechinterp.studies.results import Results, file_of, write_failure
from mechinterp.studies.runner import measured, run_study, states, study_table
from mechinterp.studies.study import Study


class Sides:
    """A study of four runs, of which one has failed, with an analysis, and what reads them."""

    def __init__(self, folder: Path):
        self.folder = folder
        variants = {"slow": {}, "fast": {"training.learning_rate": 0.2}}
        self._study = Study.of("fuzzed", scenarios.CONFIG, variants, [0, 1], ["icl_accuracy"])
        run_study(self._study, folder, workers=1, progress=False)
        *_, (_, failed) = jobs_of(self._study, folder)
        for ending in (".json", ".csv", ".h5"):
            file_of(failed, ending).unlink()
        write_failure(failed, "it broke", "a traceback")
        self._run = next(folder.glob("*.h5"))
        self._expected = self._read()
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        self._contents = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
        self.files = sorted(path for path in self._contents if path.suffix != ".h5" and path.name[0] != ".")

    def change(self, rng: np.random.Generator) -> str:
        """Restore all files, then change the bytes of one; its name."""
        for path, (content, time) in self._contents.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
            os.utime(path, ns=(time, time))  # by which the index knows the records that it repeats
        path = self.files[int(rng.integers(len(self.files)))]
        path.write_bytes(fuzz.byte_mutant(self._contents[path][0], rng))
        return path.name if path.parent == self.folder else f"cache {path.name}"

    def use(self) -> list[str]:
        """What is wrong with how the files are taken now."""
        table, tables, effects = self._expected
        try:
            new_table, new_tables, new_effects = self._read()
        except MechinterpError as error:
            return fuzz.faults_of("a table", str(error))
        except Exception as error:
            return [f"traceback ({type(error).__name__}: {str(error)[:100]})"]
        same = (new_table.eq(table) | (new_table.isna() & table.isna())).all(axis=1)
        faults = [] if (same | (new_table["status"] == "not done")).all() else ["another row of the study's table"]
        if any(not frame.equals(tables[run]) for run, frame in new_tables.items()):
            faults.append("another table of measures")
        return faults + ([] if new_effects.equals(effects) else ["another table of the analysis"])

    def _read(self) -> tuple[pd.DataFrame, dict[tuple[str, int], pd.DataFrame], pd.DataFrame]:
        table = study_table(self._study, self.folder)
        effects = mi.analyse(mi.open_run(self._run), "ablate", steps=[0, 40], n_sequences=10)
        states(self._study, Results(self.folder), self.folder)
        return table, measured(self._study, self.folder), effects
