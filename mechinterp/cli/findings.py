"""What commands find of the transitions of a run, kept beside it in ``RUN.cache/transitions.json``.

A finding holds for the whole content of the run's files and for the sources of this package: after either has changed,
none is read.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mechinterp
from mechinterp.cli.common import spikes_result, with_spikes
from mechinterp.errors import MechinterpError
from mechinterp.files import make_durable, read_sealed_json, write_sealed_json

if TYPE_CHECKING:
    import pandas as pd

    from mechinterp.emergence import Emergence
    from mechinterp.run import Run
    from mechinterp.store import Trajectory


@dataclass(frozen=True)
class Transition:
    """The transition of a measure."""

    measure: str
    step: float | None
    """The step of the transition; None if there is none."""
    text: str
    """The finding in a sentence."""


@dataclass(frozen=True)
class Question:
    """What `mechinterp emergence` is asked of a run, without a task of one's own."""

    measure: str | None = None
    """None: the main one."""
    scale: str = "step"
    n_sequences: int = 1000


@dataclass(frozen=True)
class Finding:
    """What there is to say of the transition of a measure."""

    transition: Transition
    result: dict[str, Any]
    """The JSON object of `mechinterp emergence`, without the name of the run."""
    text: str
    """What it prints."""
    answers: tuple[Question, ...]
    """The questions that it answers; none if it depends on what is not in the run's files."""


def find(run: "Run", curve: "pd.Series", emergence: "Emergence", asked: Question | None) -> Finding:
    """What there is to say of a measure by step and its transition; it is kept beside the run.

    It answers `asked`, with and without the name of the measure if that is the main one. Without `asked`, and where
    measures of one's own are registered, it answers nothing, and only its transition is told.
    """
    from mechinterp.analysis.headline import headline
    from mechinterp.measures import MEASURES
    from mechinterp.measures.table import main_column
    from mechinterp.training.spikes import spikes_of

    name, found, spikes = str(curve.name), headline(run, curve, emergence), spikes_of(run.file.metrics())
    transition = Transition(name, emergence.step if emergence.transition else None, found.transition)
    result = {"measure": name, **emergence.to_dict(), **found.to_dict(), **spikes_result(spikes)}
    answers = tuple[Question, ...]()
    if asked and all(measure.compute.__module__.startswith("mechinterp.") for measure in MEASURES.values()):
        names = [name, None] if name == main_column(run) else [name]
        answers = tuple(Question(each, asked.scale, asked.n_sequences) for each in names)
    finding = Finding(transition, result, with_spikes(str(found), spikes), answers)
    _keep(run, finding)
    return finding


def kept_answer(run: "Trajectory", question: Question) -> Finding | None:
    """The kept finding that answers a question; None if there is none that holds."""
    return next((finding for finding in _kept(run) if question in finding.answers), None)


def kept_transitions(run: "Trajectory") -> list[Transition]:
    """The transitions of the findings that hold, the latest of every measure."""
    return list({finding.transition.measure: finding.transition for finding in _kept(run)}.values())


def _keep(run: "Trajectory", finding: Finding) -> None:
    key = (finding.transition.measure, finding.answers)
    others = [each for each in _kept(run) if (each.transition.measure, each.answers) != key]
    try:
        make_durable(_file_of(run).parent)
        findings = [asdict(each) for each in (*others, finding)]
        write_sealed_json(_file_of(run), {**_basis(run), "findings": findings})
    except (OSError, MechinterpError):  # the folder of the run may be read-only
        return


def _kept(run: "Trajectory") -> list[Finding]:
    """The findings that hold, in the order in which they were found."""
    content = read_sealed_json(_file_of(run))
    if not isinstance(content, dict) or any(content.get(name) != value for name, value in _basis(run).items()):
        return []
    return [
        Finding(
            Transition(**each["transition"]),
            each["result"],
            each["text"],
            tuple(Question(**question) for question in each["answers"]),
        )
        for each in content["findings"]
    ]


def _basis(run: "Trajectory") -> dict[str, str]:
    """That for which a finding holds: the content of the run's files, and this package's code."""
    return {"run": run.content_digest(), "code": _code_digest()}


@cache
def _code_digest() -> str:
    """A digest of all sources of this package."""
    home, digest = Path(mechinterp.__file__).parent, hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _file_of(run: "Trajectory") -> Path:
    return run.path.with_name(f"{run.path.name}.cache") / "transitions.json"
