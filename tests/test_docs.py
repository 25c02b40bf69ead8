"""The documentation does what it says: its code runs, its pages build, its links lead somewhere.

A page is run from top to bottom in a folder of its own, all of its python blocks in one namespace. Of sh blocks, the
lines ``mechinterp …`` and ``python -m analyses.…`` are run in this process by the function behind them; other commands
are left out, if `LEFT_OUT` names them. A toml block is validated as the study or the run config that it is, and is then
study.toml or run.toml in that folder.

A text block directly after a python block is what that prints. It is compared: exactly, where the block does not work
with what is substituted; else the words of its first line, as the names of columns, must be printed.

What is substituted, so that this takes seconds:

* presets have the network and the task of `SMALL`, at their own number of steps up to 6,000; those with an unembedding
  have narrow networks (`SMALL_FURTHER`) of two heads on short sequences (`SMALL_TASKS`), and 60 steps;
* the run of the fast preset, which pages train or expect as ``checkpoints/reddy2023-fast-0.h5`` (1, 2), is trained once
  and copied, whatever its seed;
* of a study, all configs are validated as they are, but every run is a copy of one tiny run;
* components are read whatever the accuracy of the small network does.
"""

import inspect
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import parsl.providers
import pytest
import torch
from threadpoolctl import threadpool_limits

import mechinterp as mi
import mechinterp.training.runs
from mechinterp.cli import main
from mechinterp.cli.commands import COMMANDS, analyses, command_of, spelled
from mechinterp.comparison import formation
from mechinterp.config import PRESETS
from mechinterp.files import read_sealed_json, read_toml, write_sealed_json
from mechinterp.measures import MEASURES
from mechinterp.studies.cluster import PROVIDERS
from mechinterp.studies.jobs import Job
from mechinterp.studies.results import file_of
from mechinterp.studies.worker import check, do
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SWEEPS = tuple(
    f"python -m analyses.{name}"
    for name in (
        "ablation_l_equals_n_beta2_fixed",
        "bridge",
        "convention_audit",
        "data_dependence",
        "race",
        "race_authors",
        "race_conventions",
        "race_landscape",
        "induction_tokens",
        "singh2024",
        "edelman2024",
        "grokking",
        "causal_audit",
        "training_geometry",
    )
)
"""These vary settings that `SMALL` has smaller, or take long; their own tests in tests/analyses/ run them."""
LEFT_OUT = ("make", "pip", "git", "cd", ".", "python3 -m venv", *SWEEPS)
SMALL_FURTHER = {"model.d_model": 16, "model.d_head": 4, "training.batch_size": 4, "checkpoints.every": 60}
SMALL_TASKS = {
    "item_label": {"model.n_heads": 2},
    "markov_chains": {"task.n_pos": 12},
    "induction_tokens": {
        "task.n_tokens": 12,
        "task.n_pos": 14,
        "task.min_period": 4,
        "task.max_period": 6,
        "model.n_heads": 2,
    },
    "modular_addition": {"task.modulus": 7, "model.n_heads": 2, "model.d_mlp": 16},
}
SMALL_PAIRS = {"task.n_items": 40, "task.n_pairs": 4, "model.classifier_width": 8, "training.batch_size": 4}
SMALL = TINY | {"task.n_classes": 16, "task.n_labels": 8, "task.n_pairs": 4, "training.batch_size": 4}
SAVED = {"checkpoints.every": 1_000, "checkpoints.at": [3_400]}
FAST = "checkpoints/reddy2023-fast-{}.h5"


SUBSTITUTED = re.compile(r"\b(preset|train|open_run|run_study|Study|checkpoints|run|runs|table|tables|study)\b")
"""Words of a block whose output is that of a small network."""


class Block(NamedTuple):
    language: str
    line: int
    """Where its first line stands in the page."""
    text: str
    output: str | None
    """The text block that follows a python block directly."""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that have a language."""
    text = page.read_text(encoding="utf-8")
    fenced = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    outputs = {
        block.start(): following[2]
        for block, following in pairwise(fenced)
        if (block[1], following[1]) == ("python", "text") and not text[block.end() : following.start()].strip()
    }
    return [
        Block(block[1], text.count("\n", 0, block.start(2)) + 1, block[2], outputs.get(block.start()))
        for block in fenced
    ]


def require_output(shown: str, printed: str, *, exact: bool, where: str) -> None:
    """Compare what a page shows with what its code prints; see the module's docstring."""
    if exact:
        assert printed.splitlines() == shown.splitlines(), where
        return
    missing = set(_words(shown.splitlines()[0])) - set(_words(printed))
    assert not missing, f"{where}: {missing} is not in\n{printed}"
    assert printed.strip(), f"{where}: nothing is printed"


def _words(text: str) -> list[str]:
    """The words of a printed text, without numbers and what stands for one."""
    return [word for word in re.findall(r"[^\W\d][\w.]*", text) if word not in ("True", "False", "None", "nan", "NaN")]


def test_output_that_differs_is_seen():
    require_output("step sender\n 1 0.0", "Empty DataFrame\nColumns: [step, sender]", exact=False, where="")
    unlike = [
        ("1.5", "1.6", True),
        ("a\nb", "a", True),
        ("step sender", "step from", False),
        ("1 2", "", False),
    ]
    for shown, printed, exact in unlike:
        with pytest.raises(AssertionError):
            require_output(shown, printed, exact=exact, where="")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What is this small takes longer on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def small_presets() -> Iterator[None]:
    """Presets of `SMALL` networks."""
    small = {}
    for name in PRESETS:
        preset = mi.RunConfig.preset(name)
        steps = min(6_000, preset.training.steps)
        if preset.model.answers_everywhere:
            changes = SMALL_FURTHER | SMALL_TASKS[preset.task.kind] | {"training.steps": min(steps, 60)}
        else:
            own = SMALL if preset.task.kind == "item_label" else SMALL_PAIRS
            changes = own | {"training.steps": steps, "checkpoints.every": 1_000}
        small[name] = preset.updated(changes).model_dump()
    with pytest.MonkeyPatch.context() as patched:
        for name, values in small.items():
            patched.setitem(PRESETS, name, values)
        yield


@pytest.fixture(scope="module")
def fast_run(small_presets, tmp_path_factory) -> Path:
    """The run of the fast preset, with the steps that pages look at."""
    config = mi.RunConfig.preset("reddy2023-fast").updated(SAVED)
    return mi.train(config, tmp_path_factory.mktemp("preset") / "fast.h5", progress=False).path


@pytest.fixture
def substituted(fast_run, tiny_config, tmp_path_factory, monkeypatch) -> Iterator[None]:
    """Training copies the run of the fast preset, and studies copy one tiny run."""
    real_train, tiny, one_by_one = (
        mechinterp.training.runs.train,
        tmp_path_factory.getbasetemp() / "tiny",
        threading.Lock(),
    )
    tiny.mkdir(exist_ok=True)

    def train(config, path, **options):
        if config.updated({"seed": 0}) != mi.RunConfig.preset("reddy2023-fast"):
            return real_train(config, path, **options)
        Path(path).parent.mkdir(exist_ok=True)
        return mi.open_run(shutil.copy(fast_run, path))

    def carry_out(job: Job):
        with one_by_one:
            do({**job, "folder": str(tiny), "id": "tiny", "config": tiny_config.model_dump(mode="json")})
            for made in filter(Path.is_file, tiny.glob("tiny.*")):
                shutil.copy(made, Path(job["folder"]) / f"{job['id']}{made.suffix}")
            write_sealed_json(file_of(job, ".json"), {**read_sealed_json(tiny / "tiny.json"), "id": job["id"]})

    monkeypatch.setattr(mechinterp.training.runs, "train", train)
    monkeypatch.setattr(formation, "LEAST_RISE", -1)

    def ask(request):
        """What a worker would answer; none is started."""
        if request["what"] == "check":
            check(request["config"], request["measures"], request["device"])
        return {
            "error": None,
            "step": 0.005,
            "checkpoint": 0.2,
            "checkpoint_bytes": 6e5,
            "start": 0.0,
            "written": 0.0,
            "engine": "",
        }

    monkeypatch.setattr("mechinterp.studies.runner.execute_job", carry_out)
    monkeypatch.setattr("mechinterp.studies.processes.ask", ask)
    for name, measure in MEASURES.items():  # pages register their own, which goes with them
        monkeypatch.setitem(MEASURES, name, measure)
    known = set(MEASURES)
    yield
    for name in set(MEASURES) - known:
        del MEASURES[name]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] * (page.name == "reproduce.md"))
        for page in PAGES
        if blocks(page)
    ],
)
def test_the_code_of_a_page_runs(page, substituted, fast_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("analyses").symlink_to(ROOT / "analyses")
    Path("checkpoints").mkdir()
    for seed in range(3):
        if f"--out {FAST.format(seed)}" not in page.read_text(encoding="utf-8"):
            shutil.copy(fast_run, FAST.format(seed))
    namespace = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text  # so that an error names the page's own line
            with redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, page, "exec"), namespace)
            if block.output is not None:
                where = f"{page.name}, line {block.line}"
                exact = not SUBSTITUTED.search(block.text)
                require_output(block.output, printed.getvalue(), exact=exact, where=where)
        elif block.language == "toml":
            validate(block)
        elif block.language == "sh":
            for line in block.text.splitlines():
                run(line, f"{page.name}: {line}")


def validate(block: Block) -> None:
    Path("block.toml").write_text(block.text, encoding="utf-8")
    if "provider" in (settings := read_toml("block.toml")):
        provider = getattr(parsl.providers, PROVIDERS[settings.pop("provider")])
        assert settings.pop("workers") > 0
        inspect.signature(provider).bind_partial(**settings)
    elif settings.keys() & {"variants", "grids"}:
        path = Path("block.toml").rename("study.toml")
        assert mi.Study.from_toml(path).runs
        mi.Study.from_toml(path, paper_scale="paper_scale" in read_toml(path))
    else:
        mi.RunConfig.from_toml(Path("block.toml").rename("run.toml"))


def run(line: str, where: str) -> None:
    """Run the commands of a line of shell, as far as they are ours."""
    for command in line.partition("#")[0].split("&&"):
        words = [found for word in shlex.split(command) for found in sorted(glob(word)) or [word]]
        if not words or any(words[: len(known.split())] == known.split() for known in LEFT_OUT):
            continue
        if words[0] == "mechinterp":
            code = exit_code(main, words[1:])
        else:
            assert words[:2] == ["python", "-m"], f"{where}: is neither ours nor in LEFT_OUT"
            assert words[2].startswith("analyses."), f"{where}: is neither ours nor in LEFT_OUT"
            code = exit_code(as_main, words[2:])
        assert code == 0, where


def as_main(words: list[str]) -> None:
    """``python -m WORDS``."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", words)
        patched.delitem(sys.modules, words[0], raising=False)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def exit_code(function, words: list[str]) -> int | str:
    try:
        return function(words) or 0
    except SystemExit as stop:
        return stop.code or 0


def test_commands_that_are_neither_ours_nor_left_out_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("rm -rf checkpoints", "python -m http.server", "make run && curl x"):
        with pytest.raises(AssertionError, match="neither ours nor in LEFT_OUT"):
            run(line, line)
    with pytest.raises(AssertionError, match="mechinterp info"):
        run("mechinterp info nope.h5", "mechinterp info")


_POSITIONAL = {
    "runs": ("folder",),
    "compare": ("first", "second"),
    "config show": ("name",),
    "config check": ("name",),
    "completion": ("shell",),
    "interpolate": ("other",),
}


def test_the_page_of_commands_has_every_command_and_option():
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    for name in [*COMMANDS, *analyses()]:
        command: Any = command_of(spelled(name))
        assert f"| `{name}" in page, name  # with its argument
        options = {"start": "from", "stop": "to"} if name == "replay" else {}
        for field in fields(command):
            if field.name not in ("run", "file", "files", "settings", *_POSITIONAL.get(name, ())):
                option = options.get(field.name, field.name).replace("_", "-")
                assert re.search(rf"--(no-)?{option}\b", page), f"{name} --{option}"


QUICK = ["-D", "extensions=myst_parser,sphinx.ext.autodoc,_gallery", "-D", "html_theme=basic"]
QUICK += ["-D", "autodoc_typehints=none", "-D", "html_use_index=0"]
"""Without pages of sources, tables of contents on every page, and links of types: a quarter of the time."""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(QUICK, id="without the sources"),
        pytest.param([], id="whole", marks=pytest.mark.slow),
    ],
)
def test_the_documentation_builds_without_a_warning(options, tmp_path):
    sphinx = [sys.executable, "-m", "sphinx", "-W", "-q", *options]
    sphinx += ["-d", str(tmp_path / "trees"), "docs", str(tmp_path / "html")]
    done = subprocess.run(sphinx, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "html/api/configuration.html").read_text(encoding="utf-8")
    assert 'id="mechinterp.config.task.ItemLabelConfig.n_classes"' in reference
    for page in (tmp_path / "html").rglob("*.html"):  # which is read without the network
        assert not re.search(r'(src|<link [^>]*href)="(https?:)?//', page.read_text(encoding="utf-8")), page


LINKING = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "analyses/README.md", "checkpoints/README.md"))]


@pytest.mark.parametrize(
    "page", [*LINKING, ROOT / "benchmarks/README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"^```\w.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target
