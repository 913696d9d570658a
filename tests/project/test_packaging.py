"""What is published: the same bytes for the same commit, everything that is needed in it, and a project that runs from its git URL."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path, PurePosixPath

import mlflow
import pytest
import yaml
from servers import free_port

from emo_mlflow import __version__
from emo_mlflow.commands.doctor import TESTED_PYTHONS

ROOT = Path(__file__).parents[2]
NAME = f"emo_mlflow-{__version__}"
NOT_PUBLISHED = (".ci/", ".github/", ".gitignore", "projects/seed_study/repository")  # the last is a link to all of it
GENERATED = {"PKG-INFO", "setup.cfg"}
from_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git repository: these tests need its history")


def git(*words: str, where: Path = ROOT) -> str:
    return subprocess.run(["git", *words], cwd=where, check=True, capture_output=True, text=True).stdout


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def clone(to: Path) -> Path:
    """A copy of the last commit, as somebody else would have it."""
    git("clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(to))
    return to


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """`make dist` in two clones, in folders, time zones and with a umask of their own; the folder of the first one's results."""
    folders = []
    for name, mask, zone in (("one", 0o022, "UTC"), ("another folder", 0o077, "Asia/Tokyo")):
        folder = clone(tmp_path_factory.mktemp("dist") / name)
        os.utime(folder / "MLproject", (1e9, 1e9))
        words = ["make", "dist", "STAMP=", f"BIN={Path(sys.executable).parent}"]
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": str(mask)}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, umask=mask, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        folders.append(folder / "dist")
        time.sleep(1.1)  # a second is the smallest step of time in both formats
    return folders


def tracked() -> set[str]:
    return {name for name in git("ls-tree", "-r", "--name-only", "HEAD").splitlines() if not name.startswith(NOT_PUBLISHED)}


@pytest.mark.slow
@from_git
def test_two_builds_have_equal_bytes(built):
    """Time stamps, modes, owners, order and hash seeds all find their way into archives, if they can."""
    names = {f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"}
    digests = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} for folder in built]
    assert set(digests[0]) == names and digests[0] == digests[1]
    stamp = int(git("log", "-1", "--format=%ct"))
    with tarfile.open(built[0] / f"{NAME}.tar.gz") as sdist:
        assert {(item.mtime, item.uid, item.gid) for item in sdist} == {(stamp, 0, 0)}


@pytest.mark.slow
@from_git
def test_the_sdist_has_what_is_committed(built):
    """The project runs from it: MLproject, constraints, studies, tests. Nothing else is in it, such as a store or a cache."""
    with tarfile.open(built[0] / f"{NAME}.tar.gz") as sdist:
        found = {str(PurePosixPath(item.name).relative_to(NAME)) for item in sdist if item.isfile()}
    assert {name for name in found if not name.startswith("emo_mlflow.egg-info/")} == tracked() | GENERATED


@pytest.mark.slow
@from_git
def test_the_wheel_has_the_package_alone(built):
    """Prompts, cards, the embedded scorer and py.typed; `evaluators` inside the package, and no `projects` or `tests` at top level."""
    with zipfile.ZipFile(built[0] / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        points = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()
    package = {name for name in tracked() if name.startswith("emo_mlflow/")}
    package |= {f"emo_mlflow/{name}" for name in tracked() if name.startswith("evaluators/")}
    assert {name for name in names if not name.startswith(f"{NAME}.dist-info/")} == package
    needed = ("py.typed", "data/prompts.jsonl", "evaluators/embedded/model.onnx", "evaluators/cards/roberta-goemotions.yaml")
    assert {f"emo_mlflow/{name}" for name in needed} <= names
    assert f"{NAME}.dist-info/licenses/LICENSE" in names
    declared = configparser.ConfigParser()
    declared.read_string(points)
    for group, lines in setup_cfg()["options.entry_points"].items():
        assert "\n".join(f"{key} = {value}" for key, value in declared[group].items()) == lines.strip()
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.10" in metadata


def test_stated_versions_agree():
    """Classifiers, doctor and Requires-Python name the same Pythons; package, citation and changelog the same release."""
    classifiers = setup_cfg()["metadata"]["classifiers"]
    stated = [tuple(map(int, text.split("."))) for text in re.findall(r"Python :: (3\.\d+)", classifiers)]
    low, high = TESTED_PYTHONS
    assert stated == [(3, minor) for minor in range(low[1], high[1] + 1)]
    assert setup_cfg()["options"]["python_requires"] == f">={low[0]}.{low[1]}"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (__version__, setup_cfg()["metadata"]["license_expression"])
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in changelog or "## [Unreleased]" in changelog
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def git_url(tmp_path_factory):
    """The last commit, served by git itself over its own protocol: MLflow runs file:// URLs in place, without git."""
    folder = tmp_path_factory.mktemp("served")
    git("clone", "--quiet", "--bare", "--depth", "1", f"file://{ROOT}", str(folder / "emo_mlflow.git"))
    git("update-ref", "refs/heads/main", git("rev-parse", "HEAD").strip(), where=folder / "emo_mlflow.git")
    git("symbolic-ref", "HEAD", "refs/heads/main", where=folder / "emo_mlflow.git")
    port = free_port()
    words = ["git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}", str(folder)]
    daemon = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    url = f"git://127.0.0.1:{port}/emo_mlflow.git"
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["git", "ls-remote", url], capture_output=True, check=False).returncode:
            assert daemon.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        os.killpg(daemon.pid, 15)
        daemon.wait(10)


@from_git
@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        ("", {"model": "gpt2_small", "alphas": "-1,2"}, [["sweep", "--model=gpt2_small", "--profile=smoke"]]),
        ("#projects/seed_study", {"models": "smollm2-135m"}, [["vectors", "--model=smollm2-135m", "--emotions=gratitude,anger,apology"]]),
    ],
)  # fmt: skip
def test_it_runs_from_a_git_url(git_url, tmp_path, monkeypatch, part, values, expected):
    """The project, and a study in a subfolder of it, fetched by MLflow; the command that they start is taken down and not run."""
    log = tmp_path / "log"
    program = tmp_path / "emo-mlflow"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        done = mlflow.projects.run(git_url + part, parameters=values, env_manager="local")
        run = mlflow.MlflowClient().get_run(done.run_id)
    finally:
        mlflow.set_tracking_uri(before)
    assert done.get_status() == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD").strip()
    commands = [json.loads(line) for line in log.read_text().splitlines()]
    assert [command[: len(words)] for command, words in zip(commands, expected, strict=False)] == expected
