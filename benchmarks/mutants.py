"""How many of sixty small faults of the library the test suite sees: ``python -m benchmarks.mutants [--only N …]``.

A mutant is one change of one place of `mechinterp`: a sign, a factor, an axis, an index off by one, a check left out.
The checkout is copied to a temporary folder; one mutant after another is applied there, the test files that are
expected to see it run until the first failure, and the place is restored. A mutant is killed if a test fails, and
survives if none does; the score is the share of killed ones. ``--checkout`` takes the code and tests of another
checkout, so that two suites are compared by the same list.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "torch",
    "numba",
    "pandas",
    "scipy.optimize",
    "scipy.stats",
    "networkx",
    "h5py",
    "pydantic",
    "plotly",
    "beartype",
)
"""Imported once: the processes that test mutants are forked from this one."""
TESTS_FAILED = 1
"""What pytest returns then; it returns 0 if all pass, and more where tests cannot be run."""


class Mutant(NamedTuple):
    """A change of one place of a file of `mechinterp`."""

    file: str
    old: str
    """Text that is there once."""
    new: str
    tests: str
    """The test files or folders that are expected to see it."""


MUTANTS = (
    # models
    Mutant(
        "attention_patterns.py", "same[:, :, 0] = False", "same[:, 0, :] = False", "measures/test_prefix_matching.py"
    ),
    Mutant("models/layer.py", "device=device).triu(1)", "device=device).triu(2)", "models/test_general.py"),
    Mutant("models/layer.py", "torch.cat([-sin, sin, rest]", "torch.cat([sin, -sin, rest]", "models/test_general.py"),
    Mutant(
        "models/layer.py", "/ span * (n - exact)).long()", "/ span * (n - exact - 1)).long()", "models/test_general.py"
    ),
    Mutant(
        "models/forward.py",
        "residual[:, -out.shape[1] :] + out",
        "residual[:, : out.shape[1]] + out",
        "models/test_forward.py",
    ),
    Mutant(
        "models/induction_head.py",
        "(match[:, :-1] - r[:, 1:])",
        "(match[:, :-1] - r[:, :-1])",
        "models/test_induction_head.py",
    ),
    Mutant("models/additive.py", "/ len(labels)\n        pm", "\n        pm", "training/test_additive.py"),
    Mutant(
        "models/network.py",
        "(W - W.mean(dim=0) if",
        "(W - W.mean(dim=1, keepdim=True) if",
        "circuits/test_weights.py circuits/test_general.py",
    ),
    # circuits and analyses
    Mutant(
        "circuits/patching.py",
        "(value - low) / unit}",
        "(value - low - span) / unit}",
        "circuits/test_interventions.py",
    ),
    Mutant(
        "circuits/patching.py",
        'abs() > 2 * table["span_error"]',
        'abs() > table["span_error"]',
        "circuits/test_interventions.py",
    ),
    Mutant("circuits/attribution.py", "+ 0.5) / n_steps", "+ 1.0) / n_steps", "circuits/test_attribution.py"),
    Mutant(
        "circuits/ablation.py",
        "return rest / rest.sum(dim=-1,",
        "return rest / rest.sum(dim=-2,",
        "circuits/test_interventions.py",
    ),
    Mutant(
        "circuits/order_parameters.py",
        "((T - 1 - torch.arange(T)) % 2)",
        "((T - torch.arange(T)) % 2)",
        "circuits/test_weights.py",
    ),
    Mutant(
        "circuits/standard_errors.py",
        "(n**2 * (1 - self.share))",
        "(n**2 * (1 + self.share))",
        "circuits/test_standard_errors.py",
    ),
    Mutant(
        "circuits/faithfulness.py", "{edge: -change / span", "{edge: change / span", "circuits/test_faithfulness.py"
    ),
    Mutant("circuits/faithfulness.py", "[1 : first + 1]", "[1:first]", "circuits/test_faithfulness.py"),
    Mutant("circuits/certainty.py", "(2 * CHECKPOINTS * max(", "(CHECKPOINTS * max(", "circuits/test_certainty.py"),
    Mutant("circuits/qk_ov.py", "/ (norm(first) * norm(second))", "/ norm(second) ** 2", "circuits/test_weights.py"),
    Mutant(
        "analysis/sufficiency.py",
        "self.table.index > below[-1]",
        "self.table.index >= below[-1]",
        "analysis/test_sufficiency.py",
    ),
    Mutant(
        "analysis/headline.py",
        "accuracy <= levels[best] + _NEAR",
        "accuracy <= levels[best]",
        "analysis/test_headline.py",
    ),
    Mutant("circuits/head_matching.py", "apart < together / 2", "apart < together", "analysis/test_head_matching.py"),
    # measures and emergence
    Mutant(
        "measures/cla.py",
        "torch.where(token_labels < 0,",
        "torch.where(token_labels <= 0,",
        "measures/test_measures.py",
    ),
    Mutant("measures/ila1.py", "/ labels.sum()", "/ labels.numel()", "measures/test_measures.py"),
    Mutant("measures/fourier.py", "- n - 1) * ascending", "- n) * ascending", "measures/test_fourier.py"),
    Mutant("measures/memory.py", "* (1 - 2 * labels)", "* (2 * labels - 1)", "measures/test_memory.py"),
    Mutant(
        "measures/weights.py",
        "value.double() - reference[name] for",
        "value.double() + reference[name] for",
        "measures/test_functions.py exchange/test_known_networks.py exchange/test_recorder.py",
    ),
    Mutant("emergence/crossing.py", "+ share * (steps[after]", "+ (1 - share) * (steps[after]", "test_emergence.py"),
    Mutant("emergence/logistic.py", "2 * float(np.log(9.0))", "float(np.log(9.0))", "test_emergence.py"),
    Mutant("emergence/noise.py", "/ (0.6745 * np.sqrt(2))", "/ 0.6745", "test_emergence.py"),
    Mutant("emergence/compare.py", "ordered[n - k])", "ordered[n - k - 1])", "test_emergence.py"),
    # training
    Mutant(
        "training/optimizers.py",
        "(1 - rule.beta2 ** (step + 1)) ** 0.5)",
        "(1 - rule.beta2 ** (step + 1)))",
        "training/test_optimizers.py",
    ),
    Mutant(
        "training/optimizers.py",
        "min(1.0, limit / (norm + 1e-6))",
        "min(1.0, limit / (norm**2 + 1e-6))",
        "training/test_optimizers.py",
    ),
    Mutant("training/engines/autograd.py", "count = (labels >= 0)", "count = (labels > 0)", "training/test_general.py"),
    Mutant(
        "training/spikes.py",
        "level = min(self._level, self._recent)",
        "level = max(self._level, self._recent)",
        "training/test_spikes.py",
    ),
    Mutant(
        "training/stopping.py",
        "middle = step - self._window / 2",
        "middle = step - self._window / 4",
        "training/test_stopping.py",
    ),
    Mutant(
        "training/replay.py",
        "if digest(engine.parameters).hex() != file.digest(stop):",
        "if False:",
        "store/test_survival.py",
    ),
    # store and exchange
    Mutant(
        "store/file.py", 'digest(arrays) != self._records["digest"][row].tobytes()', "False", "store/test_run_file.py"
    ),
    Mutant("store/file.py", '(new["step"] <= before)', '(new["step"] < before)', "store/test_run_file.py"),
    Mutant(
        "store/file.py",
        "if end and end[1] > len(self._records):",
        "if end and end[1] > len(self._records) + 1:",
        "store/test_run_file.py",
    ),
    Mutant("exchange/importer.py", "if not bool(value.isfinite().all()):", "if False:", "exchange/test_importer.py"),
    Mutant(
        "exchange/importer.py",
        "range(0, count * (steps or 1), steps or 1)",
        "range(1, count * (steps or 1) + 1, steps or 1)",
        "exchange/test_importer.py",
    ),
    # studies, causes
    Mutant(
        "studies/cost.py",
        "(speed.checkpoint + speed.written) * count",
        "speed.checkpoint * count",
        "studies/test_results.py",
    ),
    Mutant(
        "studies/results.py",
        "(retry or self.error(job) is None)",
        "(retry or self.error(job) is not None)",
        "studies/test_results.py",
    ),
    Mutant(
        "studies/runner.py",
        "ratio = (steps / reference)",
        "ratio = (reference / steps)",
        "studies/test_results.py studies/test_runner.py",
    ),
    Mutant("causes/verdicts.py", "if (bounds > 1 + MARGIN).all():", "if (bounds > 1 + MARGIN).any():", "causes"),
    Mutant("causes/verdicts.py", "1 - 2.0 ** (1 - len(pairs))", "1 - 2.0 ** -len(pairs)", "causes"),
    # tasks
    Mutant("tasks/item_label.py", "(1 + epsilon**2) ** -0.5", "(1 + epsilon) ** -0.5", "tasks/test_item_label.py"),
    Mutant("tasks/item_label.py", "** -config.zipf_exponent", "** config.zipf_exponent", "tasks/test_item_label.py"),
    Mutant(
        "tasks/corruption.py",
        "[clean[:, -1], corrupt[:, -1]]",
        "[clean[:, -1], clean[:, -1]]",
        "circuits/test_interventions.py circuits/test_standard_errors.py",
    ),
    Mutant("tasks/markov_chains.py", "same.roll(1, dims=1)}", "same.roll(-1, dims=1)}", "tasks/test_markov_chains.py"),
    Mutant(
        "tasks/modular_addition.py", "place * size : (place + 1) * size]", ": size]", "tasks/test_modular_addition.py"
    ),
    Mutant("tasks/paired_items.py", "[:, :N] < 0.5)", "[:, :N] < 0.6)", "tasks/test_paired_items.py"),
    # theory, geometry, comparison
    Mutant("theory/kinetics.py", "e * w - c.c2 * w**2 / 2", "e * w - c.c2 * w**2", "theory/test_kinetics.py"),
    Mutant(
        "theory/landscape.py",
        "curvatures[:, 0] -= gradient_of_s",
        "curvatures[:, 0] += gradient_of_s",
        "theory/test_landscape.py",
    ),
    Mutant(
        "geometry/gradients.py",
        "(spread - n * squared_mean) / (n - 1)",
        "(spread - n * squared_mean) / n",
        "geometry/test_gradients.py",
    ),
    Mutant("geometry/llc.py", "(1 - step_size * total / 4)", "(1 - step_size * total / 2)", "geometry/test_llc.py"),
    Mutant(
        "comparison/formation.py",
        "synergy = given - (rises",
        "synergy = given + (rises",
        "comparison/test_formation.py",
    ),
    Mutant("comparison/matching.py", "R = U @ Vh", "R = (U @ Vh).transpose(1, 2)", "comparison/test_interpolation.py"),
    # report and commands
    Mutant(
        "report/summary.py",
        'cost=end["intact"] - end["value"]',
        'cost=end["value"] - end["intact"]',
        "report/test_summary.py",
    ),
    Mutant(
        "cli/folder.py",
        'table["second"] - table["first"]',
        'table["first"] - table["second"]',
        "cli/test_information.py",
    ),
)


def copied(checkout: Path, folder: Path) -> Path:
    """A copy of what git knows or would add of a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=checkout, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (checkout / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, folder / name)
    return folder


def outcome(mutant: Mutant, checkout: Path) -> str:
    """What the tests say of a mutant: killed, by which test, or survived."""
    path = checkout / "mechinterp" / mutant.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise SystemExit(f"{mutant.file}: {mutant.old!r} is there {count} times, expected once; change the list")
    tests = [f"tests/{name}" for name in mutant.tests.split()]
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, said = run_tests(checkout, tests)
    finally:
        path.write_text(text, encoding="utf-8")
    if code > TESTS_FAILED:
        raise SystemExit(f"{mutant.file}: the tests cannot be run:\n{said[-4_000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, flags=re.MULTILINE)
    return f"killed by {failed[1] if failed else '?'}" if code else "survived"


def run_tests(checkout: Path, tests: list[str]) -> tuple[int, str]:
    """The exit code of pytest in a process of its own, until the first failure, and what it prints."""
    with tempfile.TemporaryFile("w+") as output:
        if (child := os.fork()) == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(checkout)
            sys.path.insert(0, str(checkout))
            os.environ |= {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
            code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests])
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def main() -> None:
    parser = ArgumentParser(description="How many of a fixed list of mutants the tests kill.")
    parser.add_argument("--only", type=int, nargs="*", default=range(1, len(MUTANTS) + 1), help="numbers, from 1")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose code and tests; by default this one's")
    chosen = parser.parse_args()
    for library in LIBRARIES:
        import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        checkout, killed = copied(chosen.checkout.resolve(), Path(folder)), 0
        for number in chosen.only:
            mutant = MUTANTS[number - 1]
            found = outcome(mutant, checkout)
            killed += found != "survived"
            print(f"{number:2} {mutant.file}: {mutant.old!r} → {mutant.new!r}: {found}", flush=True)
    print(f"{killed} of {len(chosen.only)} killed")


if __name__ == "__main__":
    main()
