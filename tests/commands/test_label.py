"""Texts of a logged sweep to readers and back: what they are shown, what their labels say, and every mistake in a sheet as a line."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from scipy.stats import mannwhitneyu, spearmanr
from synthetic import on_disk, synthetic_sweep

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.commands.label import asked_of
from emo_mlflow.comparison.label_sheet import Draw, all_cells, drawn
from emo_mlflow.scoring.questions import questions
from emo_mlflow.tracking.sweep_run import SweepRun

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with one sweep whose texts all differ, and in which readers find gratitude where steering put it, but half as often as scores say."""
    folder = tmp_path_factory.mktemp("labels")
    uri = f"sqlite:///{folder}/store.db"
    sweep = synthetic_sweep(n_prompts=20, n_layers=3, emotions=("gratitude", "anger"), n_random=2)
    texts = [f"{sign} text {i} {EVIL}" for i, sign in zip(range(len(sweep.completions)), "=- x" * 10_000, strict=False)]
    sweep = replace(sweep, streamed=on_disk(sweep.completions.assign(completion=texts), sweep.scores, sweep.effects))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where a store of its own keeps artifacts
        with SweepRun.open(sweep.config, tracking_uri=uri) as run:
            run.log(sweep)
    return folder, uri, run.run_id


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def invoke(*words: str):
    result = CliRunner().invoke(main, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def sheet(place, tmp_path):
    _, uri, run_id = place
    path = tmp_path / "sheet.csv"
    result = invoke("label", run_id, "--n", "90", "--out", str(path), "--tracking-uri", uri)
    assert result.exit_code == 0, result.output
    assert "Drew       90 texts at random (20 of the baseline, 35 of emotions, 35 of random controls)" in result.output
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8", newline="")))


def write(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def scored(place) -> pd.DataFrame:
    """The scorer's numbers by text."""
    sweep = load_sweep(place[2], place[1])
    cells = all_cells(sweep.prompts, sweep.conditions, sweep.completions).merge(sweep.scores)
    return cells.assign(text=cells["continuation"].str.lstrip("'")).drop_duplicates("text").set_index("text")


def answered(place, path: Path, out: Path, flip: float = 0.0, names: tuple[str, ...] = ("gratitude", "sentiment", "fluency")) -> Path:
    """A reader's sheet: gratitude by chance where the score is high, sentiment as the score, fluency from `broken`."""
    _, uri, run_id = place
    sweep = load_sweep(run_id, uri)
    cells = all_cells(sweep.prompts, sweep.conditions, sweep.completions).merge(sweep.scores).merge(sweep.completions)
    found = {text.lstrip("'"): row for text, row in zip(cells["continuation"], cells.to_dict("records"), strict=True)}
    rng, rows = np.random.default_rng(0), []
    for row in rows_of(path):
        cell = found[row["continuation"].lstrip("'")]
        says = {
            "gratitude": 2 * int(cell["goemotions.gratitude"] / 2 > rng.random()),
            "sentiment": int(np.sign(cell["sentiment.positive"] - cell["sentiment.negative"])),
            "fluency": 0 if cell["broken"] > 0.08 else 2,
        }
        if rng.random() < flip:
            says["gratitude"] = 2 - says["gratitude"]
        rows.append({**row, **{name: str(says[name]) for name in names}})
    return write(out, rows)


def test_a_sheet_does_not_say_how_a_text_was_made(place, sheet):
    """Guards: a condition's name or order on the sheet, a formula in it, markup in the page, and two sheets for one draw."""
    _, uri, run_id = place
    rows = rows_of(sheet)
    assert list(rows[0]) == ["sheet", "id", "prompt", "continuation", "gratitude", "anger", "sentiment", "politeness", "fluency"]
    assert len(rows) == 90 and len({row["id"] for row in rows}) == 90 and all(row["anger"] == "" for row in rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert not any(row["continuation"].startswith(("=", "-")) for row in rows)
    page = sheet.with_suffix(".html").read_text(encoding="utf-8")
    assert "alert(1)" in page and EVIL not in page and page.count("<script") == 2 and "http" not in page.replace("http-equiv", "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert [row["id"] for row in data["rows"]] == [row["id"] for row in rows] and data["sheet"] == rows[0]["sheet"]
    assert "emotion" not in json.dumps(data["rows"]) and set(data["rows"][0]) == {"id", "prompt", "continuation"}
    again = invoke("label", run_id, "--n", "90", "--out", str(sheet), "--tracking-uri", uri)
    assert again.exit_code == 2 and "is there already" in again.output
    sweep = load_sweep(run_id, uri)
    cells = all_cells(sweep.prompts, sweep.conditions, sweep.completions)
    fewer, other = drawn(cells, Draw(run_id, 40, 0)), drawn(cells, Draw(run_id, 90, 1))
    assert set(fewer["id"]) < {row["id"] for row in rows} and not set(other["id"]) & {row["id"] for row in rows}
    assert len(drawn(cells, Draw(run_id, 10**6, 0))) == len(cells)


def test_two_readers_labels_come_back_with_corrected_effects(place, sheet, tmp_path):
    """Scores say twice as much gratitude as readers find: the corrected effect says so, beside the plain one; all in a child of the run."""
    _, uri, run_id = place
    first, second = answered(place, sheet, tmp_path / "a.csv"), answered(place, sheet, tmp_path / "b.csv", 0.05)
    result = invoke("agree", str(first), str(second), "--run-id", run_id, "--tracking-uri", uri)
    assert result.exit_code == 0, result.output
    client = MlflowClient(uri)
    (child,) = [r for r in client.search_runs([load_sweep(run_id, uri).run.info.experiment_id], "tags.`emo.kind` = 'agreement'")][:1]
    metrics = child.data.metrics
    assert child.data.tags["mlflow.parentRunId"] == run_id and child.info.status == "FINISHED" and child.data.params["labels.readers"] == "2"
    assert metrics["kappa.sentiment"] == 1 and 0.4 < metrics["kappa.gratitude"] < 1 and "kappa.anger" not in metrics
    assert metrics["auc.fluency.broken"] == 1
    # Which texts are drawn depends on the run's id, so the expected value is that of the texts that were.
    own = scored(place).loc[[row["continuation"].lstrip("'") for row in rows_of(first)]]
    tone = own["sentiment.positive"] - own["sentiment.negative"]
    said = [int(row["sentiment"]) for row in rows_of(first)]
    assert metrics["spearman.sentiment.positive - sentiment.negative"] == pytest.approx(spearmanr(said, tone).statistic, abs=1e-6)
    hint = np.array([int(a["gratitude"]) + int(b["gratitude"]) > 0 for a, b in zip(rows_of(first), rows_of(second), strict=True)])
    thanks = own["goemotions.gratitude"].to_numpy()
    wins = mannwhitneyu(thanks[hint], thanks[~hint]).statistic / (hint.sum() * (~hint).sum())
    assert metrics["auc.goemotions.gratitude"] == pytest.approx(wins, abs=1e-6)
    names = [f"effect.{kind}.emotion gratitude.goemotions.gratitude" for kind in ("plain", "corrected")]
    plain, corrected = (metrics[name] for name in names)
    assert metrics[f"{names[1]}.low"] < corrected < metrics[f"{names[1]}.high"] and corrected != plain
    assert metrics[f"{names[0]}.high"] - metrics[f"{names[0]}.low"] < metrics[f"{names[1]}.high"] - metrics[f"{names[1]}.low"]
    folder = Path(client.download_artifacts(child.info.run_id, "", str(tmp_path)))
    effects = pd.read_csv(folder / "corrected_effects.csv")
    assert set(effects["question"]) == {"gratitude", "sentiment", "fluency"} and {"emotion anger", "random gratitude"} <= set(effects["arm"])
    assert {"readers.csv", "agreement.csv", "labels_a.csv", "labels_b.csv"} <= {path.name for path in folder.iterdir()}
    assert load_sweep(run_id, uri).run.info.status == "FINISHED"


def test_one_reader_is_enough_and_says_what_is_missing(place, sheet, tmp_path):
    """Also as the page saves it, without texts; and as a spreadsheet with semicolons does."""
    _, uri, run_id = place
    rows = rows_of(answered(place, sheet, tmp_path / "a.csv"))
    short = [{name: row[name] for name in ("sheet", "id", "gratitude", "fluency")} for row in rows]
    for path in (write(tmp_path / "page.csv", short), write(tmp_path / "semicolons.csv", rows, ";")):
        result = invoke("agree", str(path), "--run-id", run_id, "--tracking-uri", uri)
        assert result.exit_code == 0, result.output
        assert "One reader, 90 texts" in result.output and "kappa" not in result.output and "fluency.broken: auc 1.00" in result.output


def mistakes(rows: list[dict[str, str]]):
    """Sheets that are wrong, each with what the line about it says."""
    def with_first(**changes):
        return [{**rows[0], **changes}, *rows[1:]]

    yield rows[5:], r"lacks 5 of the sheet's 90 rows \(id \w+, \w+, \w+, \.\.\.\)"
    yield [*rows, rows[0]], "row 92 has the id of a row before it"
    yield with_first(id="0" * 10), "the id in row 2 is of no text that was drawn"
    yield with_first(continuation="something else"), "the text of row 2 is not the one that was drawn"
    yield with_first(gratitude="3"), "row 2: gratitude is '3'; answers are whole numbers from 0 to 2"
    yield with_first(sentiment="-2"), "row 2: sentiment is '-2'; answers are whole numbers from -1 to 1"
    yield with_first(gratitude="yes"), "row 2: gratitude is 'yes'"
    yield with_first(gratitude="1.5"), "row 2: gratitude is '1.5'"
    yield with_first(gratitude="nan"), "row 2: gratitude is 'nan'"
    yield with_first(fluency=""), "fluency has no answer in row 2"
    yield [{**row, "gratitude": "", "sentiment": "", "fluency": ""} for row in rows], "has no answers: fill in at least one of gratitude"
    yield with_first(sheet="x"), "mixes rows of 2 sheets"
    yield [{**row, "sheet": "x"} for row in rows], "which no sheet of `emo-mlflow label` has"
    yield [{**row, "sheet": f"{'0' * 32}.90.0"} for row in rows], f"has texts of run {'0' * 32}, not of"
    yield [{"a": "1"}], "is no sheet with labels"


def test_a_mistake_in_a_sheet_is_a_line_and_nothing_is_logged(place, sheet, tmp_path):
    folder, uri, run_id = place
    rows = rows_of(answered(place, sheet, tmp_path / "a.csv"))
    before = len(MlflowClient(uri).search_runs(["0"]))
    for wrong, message in mistakes(rows):
        result = invoke("agree", str(write(tmp_path / "wrong.csv", wrong)), "--run-id", run_id, "--tracking-uri", uri)
        assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1, result.output
        assert re.search(message, result.output), (message, result.output)
    good, other = tmp_path / "a.csv", tmp_path / "other.csv"
    write(other, [{**row, "sheet": f"{run_id}.90.7"} for row in rows])
    for words, message in (
        ((str(good), str(other)), "are of different draws"),
        ((str(good), str(good), str(good)), "3 sheets were given"),
        ((str(folder),), "is a directory"),
    ):
        result = invoke("agree", *words, "--run-id", run_id, "--tracking-uri", uri)
        assert result.exit_code == 2 and message in result.output, result.output
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00sheet,id")
    assert "cannot read the sheet" in invoke("agree", str(tmp_path / "bytes.csv"), "--run-id", run_id, "--tracking-uri", uri).output
    assert len(MlflowClient(uri).search_runs(["0"])) == before


def test_a_run_whose_texts_are_gone_is_a_line(place, tmp_path):
    _, uri, _ = place
    sweep = synthetic_sweep(n_prompts=4, n_layers=2, n_random=0, seed=1)
    with SweepRun.open(sweep.config, tracking_uri=uri) as run:
        run.log(sweep)
    where = Path(MlflowClient(uri).get_run(run.run_id).info.artifact_uri.removeprefix("file://"))
    (where / "completions.parquet").unlink()
    result = invoke("label", run.run_id, "--out", str(tmp_path / "x.csv"), "--tracking-uri", uri)
    assert result.exit_code == 2 and "has no artifact completions.parquet" in result.output and not (tmp_path / "x.csv").exists()
    assert "there is no run" in invoke("label", "f" * 32, "--out", str(tmp_path / "x.csv"), "--tracking-uri", uri).output


def test_questions_are_of_the_sweeps_emotions(place):
    _, uri, run_id = place
    assert [question.name for question in asked_of(load_sweep(run_id, uri))] == ["gratitude", "anger", "sentiment", "politeness", "fluency"]
    joy, sentiment, politeness, fluency = questions(["joy"])
    available = ["goemotions.joy", "judge.joy", "sentiment.positive", "sentiment.negative", "fluency.broken", "judge.Fluency"]
    assert joy.metrics(available) == ("goemotions.joy", "judge.joy") and politeness.metrics(available) == ()
    assert sentiment.metrics(available) == ("sentiment.positive - sentiment.negative",)
    assert fluency.metrics(available) == ("fluency.broken", "judge.Fluency")
    assert joy.on_scale(np.array([0, 0.5, 2])).tolist() == [0, 1, 1] and fluency.on_scale(np.array([0.5, 1, 2])).tolist() == [1, 0, 0]
    assert sentiment.on_scale(np.array([-1, 0.5])).tolist() == [-1, 0.5]
    assert [question.name for question in questions(["Sentiment", "joy"])] == ["Sentiment", "joy", "politeness", "fluency"]
