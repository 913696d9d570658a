"""Exporting classifiers: small random checkpoints of every family, made here, against PyTorch."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from classifiers import FAMILIES, LABELS, make_checkpoint, write_card
from emo_mlflow.evaluators import checkpoint, export, graph
from fake_hub import COMMIT, FakeHub, point_at, serve
from huggingface_hub import constants

import emo_mlflow
from emo_mlflow.errors import UserError
from emo_mlflow.scoring import cards


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("family", FAMILIES)
def test_export_equals_pytorch(family: str, tmp_path: Path) -> None:
    """Guards: positions counted from the padding id, padding that changes scores, a tokenizer without its rules."""
    folder = make_checkpoint(tmp_path / "model", family, "single_label_classification")
    made = export.export_scorer(str(folder), "float32")
    card = cards.load_card(made / cards.CARD)
    assert card.quality["float32"]["largest_difference"] < 1e-4
    scores = emo_mlflow.score(export.check_texts(60), str(folder))
    assert list(scores.columns) == [f"model.{label}" for label in LABELS]
    assert np.ptp(scores.to_numpy(), axis=0).max() > 0.05, "a constant classifier would pass anything"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine, with the multi-label classifier someone/mood."""
    folder = make_checkpoint(tmp_path / "on_the_hub", "bert", "multi_label_classification")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "downloads"))
    with serve(FakeHub({"someone/mood": folder})) as running:
        point_at(running.url, monkeypatch)
        yield running


def test_int8_from_the_hub_is_reported_and_cached(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: int8 that is float32 in disguise, an export done twice, one that is found by nobody or asks the hub again."""
    card_path = write_card(tmp_path / "mood.yaml", "someone/mood", "sigmoid", revision=COMMIT)
    made = export.export_scorer(str(card_path), "int8")
    hub.silent.set()
    card = cards.load_card(made / cards.CARD)
    assert card.provenance["revision"] == COMMIT
    assert card.heads[0].activation == "sigmoid"
    assert card.quality["float32"]["largest_difference"] < 1e-4
    assert 1e-4 < card.quality["int8"]["largest_difference"] < 0.2
    assert card.quality["int8"]["top_label_agreement"] > 0.8
    monkeypatch.setattr(export, "_export", None)  # a second export would call it
    assert export.export_scorer(str(card_path), "int8") == made
    scores = emo_mlflow.score(["thank you", "I hate it"], str(card_path))
    assert list(scores.columns) == [f"mood.{label}" for label in LABELS]
    assert not np.allclose(scores.sum(axis=1), 1, atol=1e-3), "softmax on a multi-label classifier"


def test_corrupted_export_is_made_again(tmp_path: Path, own_cache: Path) -> None:
    """Guards: a truncated file in the cache that is used, or that blocks the export for good."""
    folder = make_checkpoint(tmp_path / "model", "bert", "single_label_classification")
    made = export.export_scorer(str(folder), "float32")
    (made / cards.GRAPH).write_bytes((made / cards.GRAPH).read_bytes()[:-100])
    (made.parent / ".work" / "float32").mkdir(parents=True)  # as a killed export leaves it
    with pytest.raises(UserError, match="corrupted"):
        emo_mlflow.score(["one"], str(made))
    assert export.export_scorer(str(folder), "float32") == made
    emo_mlflow.score(["one"], str(made))
    assert {path.name for path in made.parent.iterdir()} == {".lock", "current", made.name}


def test_failed_check_leaves_nothing(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a graph that differs from PyTorch being kept and used."""
    folder = make_checkpoint(tmp_path / "model", "bert", "single_label_classification")
    monkeypatch.setattr(export, "LARGEST_DIFFERENCE", 1e-12)
    with pytest.raises(UserError, match="differs from PyTorch"):
        export.export_scorer(str(folder), "float32")
    assert [path.name for path in own_cache.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.slow
def test_two_processes_export_at_once(tmp_path: Path, own_cache: Path) -> None:
    """Guards: half-written files seen by another process, the same work done twice."""
    folder = make_checkpoint(tmp_path / "model", "bert", "single_label_classification")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        made = pool.starmap(export.export_scorer, [(str(folder), "float32")] * 2)
    assert made[0] == made[1]
    emo_mlflow.score(["one"], str(made[0]))


def test_activation_must_be_said_by_somebody(tmp_path: Path) -> None:
    """Guards: softmax on a multi-label classifier whose config does not say so."""
    folder = make_checkpoint(tmp_path / "model", "bert", None)
    with pytest.raises(UserError, match="no problem_type"):
        export.export_scorer(str(folder))
    found = checkpoint.find_checkpoint(str(write_card(tmp_path / "mood.yaml", folder, "sigmoid")))
    assert found.card.heads[0].activation == "sigmoid"


def test_card_and_checkpoint_must_agree(tmp_path: Path) -> None:
    """Guards: a label map that changed between revisions; softmax in the card of a multi-label classifier."""
    folder = make_checkpoint(tmp_path / "model", "bert", "multi_label_classification")
    with pytest.raises(UserError, match="says softmax, the checkpoint's problem_type says sigmoid"):
        checkpoint.find_checkpoint(str(write_card(tmp_path / "a.yaml", folder, "softmax")))
    turned = write_card(tmp_path / "b.yaml", folder, "sigmoid", LABELS[::-1])
    with pytest.raises(UserError, match="glad, cross, calm, but the checkpoint's are calm, cross, glad"):
        checkpoint.find_checkpoint(str(turned))
    named = write_card(tmp_path / "c.yaml", folder, "sigmoid", ("Calm", "CROSS", "glad"))
    assert checkpoint.find_checkpoint(str(named)).card.heads[0].labels == ("Calm", "CROSS", "glad")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """Guards: an exporter's traceback for a missing file."""
    folder = make_checkpoint(tmp_path / "model", "bert", "single_label_classification")
    (folder / name).unlink()
    with pytest.raises(UserError, match="holds no"):
        export.export_scorer(str(folder))


@pytest.mark.parametrize("stuck", ["HfApi.model_info", "hf_hub_download"])
def test_unreachable_hub_is_an_error_in_time(stuck: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: minutes of retries, also of a hub that knows the model and does not give it; no word on what to do."""
    monkeypatch.setattr(f"huggingface_hub.{stuck}", lambda *_, **__: time.sleep(60))
    monkeypatch.setattr(checkpoint, "HUB_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"hub cannot be reached.*name its folder"):
        checkpoint.find_checkpoint("someone/mood")
    assert time.monotonic() - began < 5


def test_hub_without_the_classifier_says_so(hub: FakeHub) -> None:
    """Guards: a misspelt id or revision, or a gated repository, reported as a network that is down."""
    hub.folders["someone/private"] = hub.folders["someone/mood"]
    hub.gated.add("someone/private")
    for name, revision in (("someone/none", "main"), ("someone/mood", "v99"), ("someone/private", "main")):
        with pytest.raises(UserError, match=f"the hub has no {name} at revision {revision} that you may read"):
            checkpoint.fetch(name, revision)


def test_quantised_rows_are_near() -> None:
    """Guards: one scale for a whole embedding table, which rare words with small rows would not survive."""
    table = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32) * np.logspace(-4, 2, 50)[:, None]
    rows, scales = graph._int8_rows(table.astype(np.float32))
    assert rows.dtype == np.int8
    assert (np.abs(rows * scales - table) <= scales / 2 * 1.001).all()


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: an ImportError from deep inside for people who installed without the extra."""

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(export, "version", version)
    with pytest.raises(UserError, match=r"needs optimum: pip install 'emo_mlflow\[export\]'"):
        export.export_scorer("roberta-sentiment")
