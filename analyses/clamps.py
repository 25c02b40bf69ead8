"""H1–H3 of Reddy 2023 by intervention: which part, given for free, changes the transition?

    python -m analyses.clamps [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``clamps.toml`` on the full network and writes its tables (of runs and of variants), its page, and
figures of the in-context accuracy of every variant, as clamped and released, and of the steps of their transitions.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, run_analysis
from mechinterp.report.study import transition_steps, variant_curves


@dataclass
class Clamps(StudyAnalysis):
    """H1–H3 of Reddy 2023 by intervention: which part, given for free, changes the transition?"""

    def execute(self) -> None:
        done = self.conducted("clamps")
        for measure in ("icl_accuracy", "clamped_icl_accuracy"):
            done.write(variant_curves(done.study, done.measured, measure), measure)
        done.write(transition_steps(done.table), "transitions")


if __name__ == "__main__":
    run_analysis(Clamps)
