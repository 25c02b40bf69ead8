"""Every module of analyses/ runs on run files or a study and leaves tables and figures."""

import importlib
import inspect
import json
import pkgutil
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import analyses
from analyses._common import crossings, write_drawing, write_figure
from mechinterp.cli import run_command
from mechinterp.studies.study import Study

pytestmark = pytest.mark.usefixtures("kept_workers")


@pytest.mark.parametrize(
    ("module", "command", "table"),
    [
        ("progress_measures", "ProgressMeasures", "tiny.csv"),
        ("emergence", "Emergence", "transitions.csv"),
    ],
)
def test_an_analysis_writes_a_table_and_a_figure(module, command, table, tiny_run, tmp_path, capsys):
    analysis = getattr(importlib.import_module(f"analyses.{module}"), command)
    assert run_command(analysis, [str(tiny_run.path), "--out", str(tmp_path)]) == 0
    assert "icl_accuracy" in (tmp_path / table).read_text()
    assert len(pd.read_csv(tmp_path / table)) >= 7
    assert list(tmp_path.glob("*.html"))
    assert "figure: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "command", "small"),
    [
        ("activation_patching", "ActivationPatching", ["--n-pairs", "8"]),
        ("path_patching", "PathPatching", ["--n-pairs", "8"]),
        ("component_ablation", "ComponentAblation", ["--n-sequences", "8"]),
        ("qk_ov_circuits", "QkOvCircuits", ["--n-sequences", "8"]),
    ],
)
def test_a_circuit_analysis_writes_tables_over_all_steps_and_figures(
    module, command, small, tiny_run, tmp_path, capsys
):
    path = shutil.copy(tiny_run.path, tmp_path / "tiny.h5")
    analysis = getattr(importlib.import_module(f"analyses.{module}"), command)
    out = tmp_path / "out"
    assert run_command(analysis, [str(path), "--out", str(out), *small]) == 0
    assert len(set(pd.read_csv(out / "tiny.csv")["step"])) == 11
    assert set(pd.read_csv(out / "summary.csv")["step"]) == {0, 20}
    shown = [line.removeprefix("figure: ") for line in capsys.readouterr().out.splitlines() if "figure: " in line]
    assert shown
    assert all("plotly.min.js" in Path(each).read_text() for each in shown)


def test_attention_maps_before_and_after(tiny_run, tmp_path, capsys):
    from analyses.attention_maps import AttentionMaps

    assert run_command(AttentionMaps, [str(tiny_run.path), "--out", str(tmp_path), "--n-sequences", "8"]) == 0
    table = pd.read_csv(tmp_path / "attention.csv")
    assert list(table.columns) == ["run", "step", "layer", "head", "query", "key", "attention", "uniform"]
    assert table["step"].unique().tolist() == [10, 20], "without a transition, middle and last"
    assert {path.name for path in tmp_path.glob("*.html")} == {"tiny.html", "tiny_by_role.html"}
    for drawn in ("step 10", "step 20", "layer 2: target"):
        assert drawn in (tmp_path / "tiny_by_role.html").read_text()
    assert "tiny: icl_accuracy makes no transition" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "drawn"), [([], [10, 20]), (["--steps", "4", "8"], [4, 8, 20])])
def test_the_circuit_as_drawings_graphs_and_edges(steps, drawn, tiny_run, tmp_path):
    from analyses.induction_circuit import InductionCircuit

    path, out = shutil.copy(tiny_run.path, tmp_path / "tiny.h5"), tmp_path / "out"
    assert run_command(InductionCircuit, [str(path), "--out", str(out), "--n-pairs", "8", *steps]) == 0
    assert [int(step) for step in json.loads((out / "tiny.json").read_text())] == drawn
    assert pd.read_csv(out / "tiny.csv")["step"].unique().tolist() == drawn
    assert {"run", "operation", "effect"} <= set(pd.read_csv(out / "operations.csv"))
    assert "step 20" in ElementTree.tostring(ElementTree.parse(out / "tiny.svg").getroot(), encoding="unicode")
    strip = ElementTree.tostring(ElementTree.parse(out / "tiny_steps.svg").getroot(), encoding="unicode")
    assert all(f">step {step}<" in strip for step in drawn)


def test_runs_that_never_cross_are_left_out_aloud(capsys):
    never, once = pd.DataFrame({"icl_accuracy": [0.1, 0.2, 0.3]}), pd.DataFrame({"icl_accuracy": [0.0, 0.0, 1.0]})
    assert crossings({"slow": never, "fast": once}) == {"fast": 1.5}
    assert capsys.readouterr().out == "slow: icl_accuracy does not rise through 0.5; the figure leaves this run out\n"


@pytest.mark.parametrize(
    "module", [each.name for each in pkgutil.iter_modules(analyses.__path__) if not each.ispkg and each.name[0] != "_"]
)
def test_pictures_are_refused_before_anything_is_computed(module, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    found = vars(importlib.import_module(f"analyses.{module}")).values()
    classes = (each for each in found if inspect.isclass(each) and each.__module__ == f"analyses.{module}")
    (command,) = (each for each in classes if hasattr(each, "execute"))
    out = tmp_path / "out"
    assert run_command(command, ["--static", "png", "--static", "pdf", "--out", str(out)]) == 2
    assert "kaleido, which is not installed" in capsys.readouterr().err
    assert not out.exists()


def test_pictures_beside_the_html(tmp_path, monkeypatch, capsys):
    """That pictures are pictures is tested in tests/report; here, which are asked for, and where."""
    import plotly.graph_objects as go

    asked = []
    monkeypatch.setattr(
        "analyses._common.write_pictures", lambda figure, path, formats: asked.append((path.name, formats)) or [path]
    )
    write_figure(go.Figure(), tmp_path / "plain.html")
    write_figure(go.Figure(), tmp_path / "figure.html", ("png", "svg"))
    write_drawing('<svg width="40" height="30"/>', tmp_path / "drawing.svg", ("png", "svg"))
    write_drawing('<svg width="40" height="30"/>', tmp_path / "drawn.svg", ("svg",))
    assert asked == [("figure.html", ("png", "svg")), ("drawing.svg", ["png"])]
    assert {path.name for path in tmp_path.iterdir()} == {
        "plain.html",
        "figure.html",
        "plotly.min.js",
        "drawing.svg",
        "drawn.svg",
    }
    assert capsys.readouterr().out.count("picture: ") == 2


def test_no_run_is_one_clear_line(capsys):
    from analyses.emergence import Emergence

    assert run_command(Emergence, []) == 2
    assert capsys.readouterr().err == "mechinterp: name at least one run file\n"


@pytest.mark.parametrize("paper_scale", [False, True])
@pytest.mark.parametrize(
    ("module", "command", "figures"),
    [
        ("ablation_beta2_fixed", "AblationBeta2Fixed", ["free", "fixed"]),
        ("ablation_l_equals_n", "AblationLEqualsN", ["minimal_L8_N8_train_loss", "minimal_L8_N8_icl_accuracy"]),
        ("training_curves", "TrainingCurves", ["training_curves"]),
        ("minimal_model", "MinimalModel", ["minimal_model"]),
        ("clamps", "Clamps", ["icl_accuracy", "clamped_icl_accuracy", "transitions"]),
    ],
)
def test_an_analysis_by_a_study(
    module, command, figures, paper_scale, tiny_config, tmp_path, tmp_path_factory, monkeypatch
):
    """The study's own variants, each with a tiny network: they are all one run."""
    real_from_toml = Study.from_toml

    def tiny_from_toml(path: Path, paper_scale: bool) -> Study:
        real = real_from_toml(path, paper_scale=paper_scale)
        return Study(real.name, {variant: tiny_config for variant in real.variants}, [0], real.measures)

    monkeypatch.setattr(Study, "from_toml", tiny_from_toml)
    runs = tmp_path_factory.getbasetemp() / "tiny-runs"
    analysis = getattr(importlib.import_module(f"analyses.{module}"), command)
    options = ["--runs", str(runs), "--out", str(tmp_path), *(["--paper-scale"] if paper_scale else [])]
    assert run_command(analysis, options) == 0
    assert len(list(runs.glob("*.h5"))) == 1
    out = tmp_path / (f"{module}-paper-scale" if paper_scale else module)
    variants = list(real_from_toml(f"analyses/{module}.toml").variants)
    assert list(pd.read_csv(out / f"{module}.csv")["variant"]) == variants
    assert list(pd.read_csv(out / f"{module}-variants.csv")["variant"]) == variants
    assert {path.stem for path in out.glob("*.html")} >= {module, *figures}
