"""The house: no circle of imports, one forward pass, few engines, and TransformerLens in one room."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import networkx as nx

import mechinterp

ROOT = Path(mechinterp.__file__).parent
MODULES = {
    ".".join(("mechinterp", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

HAND_GRADIENTS = {f"mechinterp.models.{name}" for name in ("transformer", "induction_head", "additive")}
"""Modules whose gradient by hand computes its own attention."""
OF_LOGITS = {"mechinterp.measures.cla", "mechinterp.circuits.metrics"}
"""Modules that take the softmax of logits."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> list[tuple[str, tuple[str, ...]]]:
    """The modules that a module imports anywhere in it, and the names that it takes; not those for type checkers."""
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            found.append((node.module, tuple(alias.name for alias in node.names)))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(module))
    if any(isinstance(node, ast.Call) and ast.unparse(node.func) == "iter_modules" for node in ast.walk(tree(module))):
        found.extend((name, ()) for name in MODULES if name.rpartition(".")[0] == module)  # its whole folder
    return found


def defining_module(module: str, name: str) -> str:
    """The module that defines what is imported from a module under a name: a submodule, or what it re-exports."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    for source, names in imports(module) if MODULES[module].name == "__init__.py" else ():
        if name in names and source in MODULES:
            return defining_module(source, name)
    return module


def import_graph() -> nx.DiGraph:
    """An edge from each module to every one that it imports, re-exports resolved."""
    graph = nx.DiGraph()
    graph.add_nodes_from(MODULES)
    for module in MODULES:
        for source, names in imports(module):
            if source in MODULES:
                targets = [defining_module(source, name) for name in names] or [source]
                graph.add_edges_from((module, target) for target in targets if target != module)
    return graph


def test_no_modules_import_each_other_in_a_circle():
    graph = import_graph()
    assert graph.number_of_edges() > len(MODULES), "imports were overlooked"
    circles = [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    edges = [edge for circle in circles for edge in graph.subgraph(circle).edges]
    assert not circles, f"circles of imports, by their edges: {edges}"


def test_the_graph_sees_imports_in_functions_and_through_packages():
    graph = import_graph()
    assert ("mechinterp.run", "mechinterp.models.hooked") in graph.edges  # in a method
    assert ("mechinterp.run", "mechinterp.store.trajectory") in graph.edges  # from mechinterp.store
    assert ("mechinterp.run", "mechinterp.emergence") not in graph.edges  # for type checkers only
    assert ("mechinterp.measures", "mechinterp.measures.cla") in graph.edges  # with all modules of its folder


def test_three_classes_are_engines():
    derived = {
        f"{module}.{node.name}"
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef) and "Engine" in [ast.unparse(base).split(".")[-1] for base in node.bases]
    }
    assert 1 <= len(derived) <= 3, derived


def functions_that_call(module: str, name: str) -> set[str]:
    """The functions of a module in which something of this name is called."""
    return {
        f"{module}.{function.name}"
        for function in ast.walk(tree(module))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    }


def test_one_function_computes_attention():
    """Beside gradients by hand and the compiled kernels, which do not take the forward pass."""
    calling = {module: functions_that_call(module, "softmax") for module in MODULES}
    assert calling.pop("mechinterp.models.layer") == {"mechinterp.models.layer.attention_pattern"}
    kernels = "mechinterp.training.engines.fused.gradient"
    assert calling.pop(kernels) == {f"{kernels}.{name}" for name in ("layer2_forward", "classifier_forward")}
    for module in HAND_GRADIENTS:
        assert calling.pop(module) == {f"{module}.gradients"}
    assert {module for module, functions in calling.items() if functions} == OF_LOGITS


def test_one_module_imports_transformer_lens():
    importing = {
        module for module in MODULES for source, _ in imports(module) if source.split(".")[0] == "transformer_lens"
    }
    assert importing == {"mechinterp.models.hooked_lens"}


def test_analyses_measures_and_runs_are_imported_without_transformer_lens():
    """All of their modules."""
    packages = tuple(f"mechinterp.{name}" for name in ("analysis", "measures", "circuits", "run"))
    names = [name for name in MODULES if ".".join(name.split(".")[:2]) in packages]
    code = f"import sys, {', '.join(names)}; sys.exit('transformer_lens' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_digest_of_an_analysis_imports_no_transformer_lens():
    """It reads the sources of all modules that the analysis imports, of the hooked view too."""
    code = "import sys; from mechinterp.analysis.cache import code_digest, imported_modules as reached; "
    code += "home = 'mechinterp.run'; code_digest(home); "
    code += "assert 'mechinterp.models.hooked_lens' in reached(home); sys.exit('transformer_lens' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_store_imports_neither_torch_nor_pandas():
    """So that a run is shown at once."""
    code = "import sys, mechinterp.cli, mechinterp.store; sys.exit(len({'torch', 'pandas'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
