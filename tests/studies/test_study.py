"""What a study is: validated before anything starts, runs by the hash of their config."""

import pytest

import mechinterp as mi
from mechinterp.config import ItemLabelConfig
from mechinterp.config.interventions import Window
from mechinterp.errors import ConfigError, MechinterpError
from mechinterp.studies.jobs import grouped, jobs_of
from mechinterp.studies.study import DEFAULT_MEASURES, Study, flat

STUDY = """
preset = "reddy2023-fast"
seeds = [3, 5]
measures = ["icl_accuracy", "ila1"]

[base]
training.steps = 50
checkpoints.every = 5

[variants.free]

[variants.clamped]
task.burstiness = 2
interventions = [{ kind = "clamp", layer = 0, pattern = "uniform", stop = 9 }]

[paper_scale]
preset = "reddy2023"
seeds = [7]
training.steps = 70
variants.clamped.task.burstiness = 4
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(STUDY)
    return path


def test_a_study_is_its_base_times_variants_times_seeds(file):
    study = Study.from_toml(file)
    assert (study.name, study.seeds, study.measures) == ("two", (3, 5), ("icl_accuracy", "ila1"))
    assert [(run.variant, run.seed) for run in study.runs] == [(v, s) for v in ("free", "clamped") for s in (3, 5)]
    free, _, clamped, _ = (run.config for run in study.runs)
    base = mi.RunConfig.preset("reddy2023-fast", seed=3)
    assert free == base.updated({"training.steps": 50, "checkpoints.every": 5})
    clamp = clamped.interventions[0]
    assert isinstance(clamped.task, ItemLabelConfig)
    assert isinstance(clamp, Window)
    assert (clamped.task.burstiness, clamp.stop) == (2, 9)
    assert clamped.updated({"interventions": [], "task.burstiness": 1}) == free


def test_paper_scale_changes_the_base(file):
    study = Study.from_toml(file, paper_scale=True)
    (free, clamped) = (run.config for run in study.runs)
    assert (free.seed, free.training.steps, free.training.learning_rate) == (7, 70, 0.01)
    assert isinstance(clamped.task, ItemLabelConfig)
    assert (clamped.task.burstiness, clamped.training.steps) == (4, 70)
    assert free.checkpoints.every == 5


def test_equal_configs_are_one_run_and_others_are_not(file):
    ids = [run.id for run in Study.from_toml(file).runs]
    again = Study.of("other", mi.RunConfig.preset("reddy2023-fast"), {"x": flat({"training": {"steps": 50}})}, [3])
    assert len(set(ids)) == 4
    assert again.runs[0].id not in ids
    same = Study("same", {"free": Study.from_toml(file).variants["free"]}, [5, 3])
    assert [run.id for run in same.runs] == [ids[1], ids[0]]


@pytest.mark.parametrize(
    ("line", "replaced", "message"),
    [
        ("seeds = [3, 5]", "seds = [3]", r"two\.toml: unknown key 'seds'; did you mean 'seeds'"),
        ("seeds = [3, 5]", "seeds = [3, 3]", "seeds names 3 twice"),
        ("seeds = [3, 5]", "seeds = [-1]", "seed"),
        ("seeds = [3, 5]", "seeds = 3", r"two\.toml: seeds: input should be a valid tuple"),
        ("task.burstiness = 2", "task.burstines = 2", r"variant 'clamped'.*did you mean 'burstiness'"),
        ("task.burstiness = 2", "task.burstiness = 3", r"variant 'clamped'.*not divisible"),
        ("training.steps = 50", "training.steps = 'x'", r"training\.steps"),
        ('pattern = "uniform"', 'pattern = "unifrm"', r"variant 'clamped'.*pattern"),
        ('preset = "reddy2023-fast"', 'preset = "reddy"', r"two\.toml: unknown preset"),
        ('preset = "reddy2023-fast"', 'preset = ["a"]', r"preset: input should be a valid string"),
        ('preset = "reddy2023-fast"', 'name = ".."', "the name becomes that of files"),
        ('measures = ["icl_accuracy", "ila1"]', "measures = 3", "measures: input should be a valid tuple"),
        ('measures = ["icl_accuracy", "ila1"]', "measures = [3]", r"measures\.0: input should be a valid string"),
        ("task.burstiness = 2", "seed = 2", "seeds are the study's"),
        (
            "[variants.free]",
            "[variants.free]\ninterventions = { kind = 'copy' }",
            "interventions: input should be a valid tuple",
        ),
        ("seeds = [7]", "seeds = 3", "seeds: input should be a valid tuple"),
        ("[variants.free]", "[variants.free", "not valid TOML"),
        ("variants.clamped.task", "variants.clampt.task", r"unknown variant 'clampt'; did you mean 'clamped'"),
        ("[variants.free]", "[variants]\nfree = 3", r"variants\.free: input should be a valid dictionary"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line(file, line, replaced, message):
    file.write_text(STUDY.replace(line, replaced, 1))
    with pytest.raises(MechinterpError, match=message) as refused:
        Study.from_toml(file, paper_scale="clampt" in replaced)
    assert "\n" not in str(refused.value)


def test_paper_scale_of_a_study_without_one_is_refused(file):
    file.write_text(STUDY[: STUDY.index("[paper_scale]")])
    with pytest.raises(ConfigError, match=r"no section \[paper_scale\]"):
        Study.from_toml(file, paper_scale=True)


def test_measures_that_nobody_names_are_those_of_the_task(tiny_config):
    config = mi.RunConfig.preset("grokking")
    assert Study.of("sums", config, {"free": {}}).measures == ("test_accuracy",)
    assert Study.of("pairs", mi.RunConfig.preset("nguyen2024-fast"), {"free": {}}).measures[0] == "icl_accuracy"
    assert Study.of("items", tiny_config, {"free": {}}).measures == DEFAULT_MEASURES
    mixed = Study("both", {"heads": mi.RunConfig.preset("singh2024"), "items": tiny_config})
    assert mixed.measures == ("icl_accuracy", "cla", "tla2", "ila1", "tila2")


@pytest.mark.parametrize("changes", [{"variants": {}}, {"seeds": []}, {"measures": []}, {"name": "a/b"}])
def test_an_empty_study_is_refused(tiny_config, changes):
    with pytest.raises(ConfigError, match="study"):
        Study(**{"name": "s", "variants": {"free": tiny_config}, **changes})


GRIDS = """
keep = "last"
[grids.classes]
task.n_classes = [64, 96]
task.burstiness = [1, 2]
training.steps = 70
[grids.noise]
task.epsilon = [0.5]
[variants.free]
[settings.short]
training.steps = 30
checkpoints.every = 10
[settings.long]
training.learning_rate = 0.2
"""


def test_grids_are_all_combinations_and_settings_cross_them(tmp_path):
    path = tmp_path / "grids.toml"
    path.write_text(GRIDS)
    study = Study.from_toml(path)
    own = ["free", *(f"classes n_classes={k} burstiness={b}" for k in (64, 96) for b in (1, 2)), "noise epsilon=0.5"]
    assert list(study.variants) == [f"{setting} {variant}" for setting in ("short", "long") for variant in own]
    assert study.keep == "last"
    found = study.variants["long classes n_classes=96 burstiness=2"]
    expected = {"task.n_classes": 96, "task.burstiness": 2, "training.steps": 70, "training.learning_rate": 0.2}
    assert found == mi.RunConfig.preset("reddy2023-fast").updated(expected)
    assert study.variants["short noise epsilon=0.5"].training.steps == 30
    assert study.variants["short classes n_classes=64 burstiness=1"].training.steps == 70  # its own counts


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("task.n_classes = 64", "grid 'g': lists of plain values say"),
        ("task.n_classes = [64, 96, 64]", r"grid 'g': task\.n_classes names 64 twice"),
        ("task.n_classes = [64]\n[variants.'g n_classes=64']", "two variants are called 'g n_classes=64'"),
        (
            "task.n_classes = [64]\n[settings.a]\ntask.n_classes = 32\n[settings.b]\ntask.n_classes = 96",
            "do not differ",
        ),
        ("task.n_classes = []", r"grid 'g': task\.n_classes is an empty list"),
        ("interventions = [{ kind = 'copy' }]", "grid 'g': lists of plain values say"),
        ("task.n_clases = [64]", r"variant 'g n_clases=64'.*did you mean 'n_classes'"),
    ],
)
def test_a_faulty_grid_is_refused(tmp_path, grid, message):
    path = tmp_path / "grids.toml"
    path.write_text(f"[grids.g]\n{grid}\n")
    with pytest.raises(ConfigError, match=message):
        Study.from_toml(path)


def test_paper_scale_reaches_one_grid(tmp_path):
    path = tmp_path / "grids.toml"
    larger = "[paper_scale]\nseeds = [0]\ncheckpoints.every = 1_000\ngrids.noise.checkpoints.every = 2_000\n"
    path.write_text(GRIDS + larger)
    study = Study.from_toml(path, paper_scale=True)
    every = {name: config.checkpoints.every for name, config in study.variants.items()}
    assert every["long noise epsilon=0.5"] == 2_000
    assert every["long free"] == 1_000
    path.write_text(path.read_text().replace("\ngrids.noise", "\ngrids.noize"))
    with pytest.raises(ConfigError, match="unknown grid 'noize'; did you mean 'noise'"):
        Study.from_toml(path, paper_scale=True)
    path.write_text(GRIDS + "[paper_scale]\nseeds = []\n")
    with pytest.raises(ConfigError, match="seeds is empty"):
        Study.from_toml(path, paper_scale=True)


def test_runs_of_other_shapes_are_no_group(tmp_path, monkeypatch):
    monkeypatch.setattr("mechinterp.studies.jobs.faster_together", lambda config: True)
    base = mi.RunConfig.preset("nguyen2024-fast")
    changes = {"narrow": {"task.item_dim": 16}, "rare": {"task.zipf_exponent": 1.0}, "long": {"task.n_pairs": 40}}
    study = Study.of("shapes", base, {"same": {}, **changes}, seeds=[0, 1])
    jobs = [job for _, job in jobs_of(study, tmp_path)]
    groups = [[study.runs[jobs.index(job)].variant for job in group] for group in grouped(jobs, 8)]
    assert sorted(map(sorted, groups)) == [["long", "long"], ["narrow", "narrow"], ["rare", "rare", "same", "same"]]
