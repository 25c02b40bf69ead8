"""Statistical induction heads on Markov chains (Edelman et al. 2024): which strategies succeed one another?

    python -m analyses.edelman2024 [--workers N] [--paper-scale] [--out FOLDER]

Does the study ``edelman2024.toml`` (chains, doubly stochastic chains, one layer) and writes its tables (of runs and of
variants), its page, ``verdicts.csv`` and a figure of the distances from the three strategies.
"""

from dataclasses import dataclass

from analyses._common import StudyAnalysis, run_analysis
from analyses._figures import by_variant
from analyses.claims.further import STRATEGIES, of_chains

ROWS = {"KL (nats)": list(STRATEGIES), "prefix matching": ["prefix_matching_1", "prefix_matching_2"]}


@dataclass
class Edelman2024(StudyAnalysis):
    """Statistical induction heads on Markov chains (Edelman et al. 2024): which strategies succeed one another?"""

    def execute(self) -> None:
        done = self.conducted("edelman2024")
        runs = {name: done.by_seed(name) for name in done.study.variants}
        done.write(by_variant(runs, ROWS, "Distance from three strategies of prediction"), "edelman2024")
        done.judged(of_chains(runs["chains"], runs["doubly_stochastic"], runs["one_layer"]))


if __name__ == "__main__":
    run_analysis(Edelman2024)
