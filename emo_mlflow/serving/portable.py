"""Logged models that load anywhere: this package's code goes along, every need is pinned, and MLmodel names no path of this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import Model
from mlflow.models.model import ModelInfo
from packaging.requirements import Requirement

# What scoring needs of what this package needs; a test imports it and looks.
OF_SCORING = (
    "mlflow", "numpy", "onnxruntime", "packaging", "pandas", "platformdirs", "psutil", "pyarrow", "pyyaml", "scipy", "tokenizers",
)  # fmt: skip
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "embedded")  # the embedded scorer is a folder of the models that need it


class Portable:
    """MLflow's pyfunc flavor, with code and artifacts called by where they are in the model, and not by where they came from."""

    __name__ = "mlflow.pyfunc"

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **options: Any) -> None:
        """Saves the model into a folder."""
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **options)
        flavor = mlflow_model.flavors[mlflow.pyfunc.FLAVOR_NAME]
        flavor["model_code_path"] = Path(flavor["model_code_path"]).name  # MLflow takes the file of that name in the model
        for artifact in flavor.get("artifacts", {}).values():
            artifact["uri"] = artifact["path"]
        place, mlflow_model.artifact_path = mlflow_model.artifact_path, None  # of this machine, where its store is
        mlflow_model.save(str(Path(path) / "MLmodel"))
        mlflow_model.artifact_path = place


def log_portable(
    name: str, python_model: Path, artifacts: Mapping[str, str], needed: Callable[[str], bool], **options: Any
) -> ModelInfo:
    """Logs a model from code to the active run.

    Args:
        python_model: the file of its code.
        needed: whether it needs one of this package's requirements.
        options: for `mlflow.models.Model.log`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        return Model.log(
            artifact_path=None,
            name=name,
            flavor=Portable,
            python_model=str(python_model),
            artifacts=dict(artifacts),
            code_paths=[str(copy_package(Path(temporary)))],
            pip_requirements=[pin for other, pin in pins().items() if needed(other)],
            **options,
        )


def pins() -> dict[str, str]:
    """What this package needs at run time, by name, in the versions that are installed here."""
    needed = [Requirement(line) for line in requires("emo_mlflow") or ()]
    return {
        need.name: f"{need.name}=={_public(version(need.name))}"
        for need in needed
        if need.marker is None or need.marker.evaluate({"extra": ""})
    }


def copy_package(folder: Path) -> Path:
    """Copies this package's code into a folder; returns where."""
    target = folder / "emo_mlflow"
    for package, place in (("emo_mlflow", target), ("emo_mlflow.evaluators", target / "evaluators")):  # of an installation in two folders
        shutil.copytree(Path(str(files(package))), place, ignore=_LEFT_OUT, dirs_exist_ok=True)
    return target


def _public(found: str) -> str:
    return found.partition("+")[0]  # a local version such as +cpu is on no public index
