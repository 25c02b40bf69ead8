"""The installation: the lists of packages are complete, and nothing but the hooked model needs TransformerLens."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import mechinterp as mi
from tests.conftest import TINY

ROOT = Path(mi.__file__).parent.parent
REQUIRED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]

WITHOUT = """
import sys
from importlib import metadata

blocked, installed = set({blocked!r}), metadata.version

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def version(name):
    if name == "transformer-lens":
        raise metadata.PackageNotFoundError(name)
    return installed(name)

sys.meta_path.insert(0, Blocked())
metadata.version = version

import mechinterp as mi
from mechinterp.cli import main

config = mi.RunConfig().updated({config!r})
run = mi.train(config, "tiny.h5", progress=False)
table = mi.measure(run)
assert table.index.tolist() == run.steps and table["icl_accuracy"].between(0, 1).all()
for command in ("emergence", "circuit", "report"):
    assert main([command, "tiny.h5", "--json"]) == 0, command
try:
    run.model(20)
except mi.MechinterpError as error:
    print("REFUSED", error)
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirements: Iterable[str]) -> set[str]:
    """The packages that requirements install on this machine, themselves included; extras and their like left out."""
    waiting, names = list(requirements), set[str]()
    while waiting:
        requirement, _, marker = waiting.pop().partition(";")
        name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
        if canonical(name) in names or not applies(marker):
            continue
        names.add(canonical(name))
        waiting.extend(distribution(name).requires or ())
    return names


def applies(marker: str) -> bool:
    """Whether a requirement's marker holds on this machine, outside all extras."""
    from packaging.markers import Marker

    return not marker.strip() or Marker(marker).evaluate({"extra": ""})


def pins(name: str) -> set[str]:
    """The packages with their versions that a list has; markers of platforms follow the version."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split(";")[0].strip(" \\").split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {f"{canonical(package)}=={version}" for package, version in found}


def test_the_hashes_are_of_all_packages_of_the_constraints_but_torch():
    """`make` installs by the hashes, and by the constraints what is not among them."""
    user, dev = pins("hashes.txt"), pins("hashes-dev.txt")
    assert not user & dev
    assert user | dev == {pin for pin in pins("constraints.txt") if not pin.startswith("torch==")}
    assert len(user) > 50


def test_what_a_user_installs_is_what_the_package_requires():
    """So `make run` installs no browser, linters or tools of documentation, and nothing without its hash."""
    user = {pin.partition("==")[0] for pin in pins("hashes.txt")}
    assert needed(REQUIRED) - {"torch", "setuptools"} == user


def test_all_but_the_hooked_model_works_without_transformer_lens(tmp_path):
    """And without the packages that it alone brings."""
    others = [requirement for requirement in REQUIRED if not requirement.startswith("transformer-lens")]
    assert len(others) == len(REQUIRED) - 1
    brought = needed(REQUIRED) - needed(others)
    blocked = [module for module, names in packages_distributions().items() if {*map(canonical, names)} <= brought]
    assert {"transformer_lens", "transformers", "einops", "wandb"} <= set(blocked)
    code = WITHOUT.format(blocked=[*blocked], config=TINY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "REFUSED a hooked model is one of TransformerLens, which is not installed: pip install" in done.stdout
