"""Who may import whom, and what is declared and packaged."""

from __future__ import annotations

import ast
import configparser
import importlib
import itertools
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from emo_mlflow import __version__

ROOT = Path(__file__).parents[2]
PACKAGE, EVALUATORS = "emo_mlflow", "emo_mlflow.evaluators"

# The packages, and the modules beside them, in the order in which imports may go: each imports from those before it only.
ORDER = (
    "scorers",  # these two are imported by models that version 0.1 logged, and by nobody else
    "steered",
    "errors",
    "types",
    "common",
    "prompts",
    "settings",
    "statistics",
    "models",
    "directions",
    "alignment",
    "steering",
    "scoring",
    "sweeping",
    "comparison",
    "studying",
    "report",
    "interchange",
    "tracking",
    "serving",
    "cluster",
    "evaluators",
    "commands",
    "cli",
)

PLUGINS = tuple(f"{EVALUATORS}.{name}" for name in ("plugin", "pyfunc", "served_model", "genai"))
# Who may import a library: these, and what is inside of them.
ALLOWED: dict[str, tuple[str, ...]] = {
    "mlflow": (
        "emo_mlflow.tracking", "emo_mlflow.serving", "emo_mlflow.cli", "emo_mlflow.cluster.backend", "emo_mlflow.scoring.logged_model", *PLUGINS,
    ),
    "onnxruntime": ("emo_mlflow.scoring", f"{EVALUATORS}.graph"),
    "click": ("emo_mlflow.cli",),
    "ray": ("emo_mlflow.cluster",),
}
OF_STATISTICS = {"numpy", "pandas", "scipy", "statsmodels", "threadpoolctl"}
HEAVY = ("ray", "torch", "transformers", "mlflow", "pandas", "onnxruntime", "scipy", "matplotlib", "numpy")


@dataclass(frozen=True)
class Import:
    """One imported module; `late` if it happens in a function, so not when the importing module is."""

    target: str
    late: bool


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name, as installed."""
    found = {}
    for root, prefix in ((ROOT / "emo_mlflow", PACKAGE), (ROOT / "evaluators", EVALUATORS)):
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((prefix, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


@cache
def imports() -> dict[str, frozenset[Import]]:
    """What each module imports: modules of the package by their full name, others as written."""
    names = set(module_files())
    return {
        name: frozenset(_collect(ast.parse(path.read_text(encoding="utf-8")), names))
        for name, path in module_files().items()
    }


def _collect(tree: ast.AST, names: set[str], late: bool = False) -> list[Import]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [Import(member if member in names else node.module, late) for member in members]
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            found += _collect(node, names, late or inside)
    return found


def reach(start: str, at_import: bool = False) -> set[str]:
    """The package's modules that `start` imports, directly or through others.

    Args:
        at_import: only what is loaded as soon as `start` is imported, for which a module's parent packages count too.
    """
    names = set(module_files())
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for found in imports()[waiting.pop()]:
            parts = found.target.split(".")
            parents = [".".join(parts[:i]) for i in range(1, len(parts))] if at_import else []
            new = {found.target, *parents} & names - seen if not (at_import and found.late) else set()
            seen |= new
            waiting += new
    return seen - {start}


def within(name: str, part: str) -> bool:
    """Whether a module is `part` or inside of it."""
    return name == part or name.startswith(f"{part}.")


def room(name: str) -> str:
    """Which entry of `ORDER` a module belongs to; the package's own face belongs to none."""
    return name.split(".")[1] if "." in name else ""


def test_the_walk_sees_the_package():
    """The rules below would hold of an empty list: what they are checked on is all there."""
    assert {"emo_mlflow.types", "emo_mlflow.sweeping.run", EVALUATORS, f"{EVALUATORS}.plugin"} <= set(module_files())
    assert "emo_mlflow.types" in reach("emo_mlflow.sweeping.run")
    assert "emo_mlflow.settings.tables" in reach("emo_mlflow.cli.main")
    late = [Import("torch", True), Import("json", False)]
    assert _collect(ast.parse("def f():\n    import torch\nimport json"), set()) == late


def test_every_module_is_in_a_room():
    """A module that the order does not name is one that it does not bind."""
    assert {room(name) for name in module_files()} - {""} == set(ORDER)


@pytest.mark.parametrize("name", ["scorers", "steered"])
def test_what_an_earlier_version_logged_says_so(name):
    """A logged model imports where its version had the code; it learns what to do, and not that a module is missing."""
    with pytest.raises(ImportError, match=r"logged by emo_mlflow 0\.1, and this is .*log it again"):
        importlib.import_module(f"emo_mlflow.{name}")


def test_no_module_imports_itself_through_others():
    """Cycles are how a package becomes one module in many files."""
    reached = {name: reach(name) for name in module_files()}
    assert not [(name, other) for name, others in reached.items() for other in others if name in reached[other]]


@pytest.mark.parametrize("name", sorted(set(module_files()) - {PACKAGE}))
def test_imports_go_one_way(name):
    """From a room to those before it in `ORDER`, also in functions: the pipeline can be read from its imports."""
    own = ORDER.index(room(name))
    others = {item.target for item in imports()[name] if within(item.target, PACKAGE)} - {PACKAGE}
    assert not {target for target in others if ORDER.index(room(target)) > own}


def test_no_two_modules_differ_by_an_ending():
    """`align`, `aligner` and `alignment` are one name for three things. Commands and their settings have the names that people type."""
    named_by_users = (f"{PACKAGE}.commands.", f"{PACKAGE}.settings.")
    names = sorted({part for name in module_files() if not name.startswith(named_by_users) for part in name.split(".")[1:]})
    pairs = [(a, b) for a, b in itertools.pairwise(names) if b.startswith(a) and not b.startswith(f"{a}_")]
    assert not pairs


@pytest.mark.parametrize("library", ALLOWED)
def test_libraries_stay_at_their_edge(library):
    """MLflow, ONNX Runtime and click each have one place that knows them."""
    users = {name for name, found in imports().items() if any(within(item.target, library) for item in found)}
    assert not {name for name in users if not any(within(name, part) for part in ALLOWED[library])}


def test_statistics_know_arrays_alone():
    """They are tested against R and scipy, and used without a model."""
    for name in (name for name in module_files() if within(name, f"{PACKAGE}.statistics")):
        outside = {item.target.split(".")[0] for item in imports()[name]} - set(sys.stdlib_module_names) - {PACKAGE}
        assert outside <= OF_STATISTICS, name


@pytest.mark.parametrize("part", ["statistics", "report", "comparison", "cli"])
def test_torch_is_not_loaded_for_numbers_and_help(part):
    """Statistics and reports need no torch, and `emo-mlflow --help` does not wait for it."""
    for start in (name for name in module_files() if within(name, f"{PACKAGE}.{part}")):
        for name in (start, *reach(start, at_import=True)):
            assert not [item for item in imports()[name] if not item.late and within(item.target, "torch")], name


def test_inits_import_nothing_heavy():
    """MLflow loads the plugins inside everyone's `import mlflow`: what they pull in, everyone pays for."""
    for name in (PACKAGE, EVALUATORS):
        for item in imports()[name]:
            assert item.target.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("name", [PACKAGE, EVALUATORS, "emo_mlflow.cli.main"])
def test_a_fresh_import_is_light(name):
    """The same, as Python sees it."""
    code = f"import sys, {name}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not done.stdout.split()


def declared() -> dict[str, set[str]]:
    """Distribution names that setup.cfg asks for, by extra; `""` is what is always installed."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {canonicalize_name(Requirement(line).name) for line in text.split("\n") if line.strip()}
        for extra, text in lists.items()
    }


def test_what_is_imported_is_declared():
    """A library that only comes with another one is gone when that one drops it."""
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    wanted = {item.target.split(".")[0] for found in imports().values() for item in found}
    third_party = wanted - set(sys.stdlib_module_names) - {PACKAGE}
    known = set().union(*declared().values())
    here = third_party & set(owners)  # extras such as ray need not be
    undeclared = {name for name in here if not {canonicalize_name(d) for d in owners[name]} & known}
    assert not undeclared


def test_ci_pins_what_is_declared():
    """Whatever setup.cfg names has one exact version in constraints.txt, so that CI runs what it ran yesterday."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    assert set().union(*declared().values()) <= {canonicalize_name(pin.name) for pin in pins}


def test_every_package_is_installed():
    """A folder that setup.cfg forgets works in a checkout and is missing from the wheel."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == {name for name, path in module_files().items() if path.name == "__init__.py"}


def test_mlflow_makes_a_new_environment_for_each_release():
    """MLflow reuses an environment while python_env.yaml is unchanged, and would run the last release's code."""
    dependencies = yaml.safe_load((ROOT / "python_env.yaml").read_text())["dependencies"]
    assert dependencies == ["--constraint constraints.txt", f". # {__version__}"]


def test_types_are_checked_where_evaluators_are_too():
    """mypy knows nothing of setup.cfg's package_dir: without the link, everything that is imported from evaluators/ would be Any."""
    link = Path(".ci", "typing", *EVALUATORS.split("."))
    assert (ROOT / link).resolve() == ROOT / "evaluators"
    assert f'"{link.as_posix()}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
