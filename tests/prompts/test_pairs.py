"""Contrastive pairs as people keep them; what is fitted on them and how it is judged, by hand; and pairs that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import write_worded_texts
from scipy import stats
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import vectors
from emo_mlflow.directions.controls import shuffled_control
from emo_mlflow.directions.fitting import choose_direction
from emo_mlflow.directions.readouts import contrasts, judge, make_pair_folds
from emo_mlflow.directions.subspaces import fit_subspaces
from emo_mlflow.errors import UserError
from emo_mlflow.models.tokens import encode_fit_texts
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.pairs import Pair, prompts_of, read_pairs
from emo_mlflow.prompts.selection import load_prompts
from emo_mlflow.scoring.cards import Head
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.settings.templates import form_of
from emo_mlflow.sweeping.plan import make_plan, prepare

ROWS = [{"positive": f"thank you {i}", "negative": f"the stone {i}", "emotion": ["gratitude", "joy"][i % 2]} for i in range(8)]
CAA = [
    {"question": f"Are you glad {i}?\n\nChoices:\n (A) Yes\n (B) No", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": "(B)"}
    for i in range(3)
]


def read(path: Path, personas: str = "") -> list[Pair]:
    return read_pairs(path, personas, Layout())


def test_what_people_have(tmp_path):
    """The same pairs from a table in any format; multiple choice up to the answer's letter; endings behind two personas."""
    table = pd.DataFrame(ROWS)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "a.parquet", index=False)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    expected = [Pair(row["emotion"], row["positive"], row["negative"]) for row in ROWS]
    for name in ("a.csv", "a.tsv", "a.parquet", "a.jsonl", "a.json"):
        assert read(tmp_path / name) == expected, name
    (tmp_path / "gladness.json").write_text(json.dumps(CAA))
    assert read(tmp_path / "gladness.json")[1] == Pair(
        "gladness", "Are you glad 1?\n\nChoices:\n (A) Yes\n (B) No (A", "Are you glad 1?\n\nChoices:\n (A) Yes\n (B) No (B"
    )
    (tmp_path / "joy.json").write_text(json.dumps(["The sea", "My boss"]))
    assert read(tmp_path / "joy.json", "happy / sad")[0] == Pair(
        "joy", "Act as if you are extremely happy. The sea", "Act as if you are extremely sad. The sea"
    )


@pytest.mark.parametrize(
    ("name", "content", "personas", "said"),
    [
        ("a.csv", "positive,negative\nx,\ny,z\n", "", "a.csv, line 2: negative is empty: fill it in or remove the row"),
        ("a.csv", "positive,other\nx,y\n", "", "has no column 'negative'"),
        ("a.jsonl", '{"positive": "x", "negative": 3}', "", "line 1: negative is 3"),
        ("a.jsonl", '{"positive": "x", "negative": "x"}', "", "positive and negative are the same text"),
        ("a.json", "{}", "", "is no list"),
        ("a.json", '["x", {"positive": "a", "negative": "b"}]', "", "item 1 is a text among objects"),
        ("a.json", '["x", " "]', "glad/sad", "item 2 is an empty ending"),
        ("a.json", '[{"positive": "\\ud800", "negative": "b"}]', "", "item 1: positive holds half a character"),
        ("a.json", '["x"]', "", "say whose they are with personas="),
        ("a.json", '["x"]', "glad", "is not two personas"),
        ("a.json", '[{"positive": "x", "negative": "y"}]', "a/b", "is for a list of endings"),
        ("a.csv", "positive,negative\nx,y\n", "a/b", "is a table: leave it out"),
        ("a.json", "[3]", "", "item 1 is neither"),
        ("a.json", "[", "", "is not JSON"),
        ("a.md", "", "", "is no file that ends in"),
        ("a.csv", "positive,negative\n", "", "has no rows"),
        ("a.jsonl", '{"positive": "x", "negative": "y", "emotion": "joy (negative)"}', "", "is not a name of"),
    ],
)
def test_pairs_that_are_none(tmp_path, name, content, personas, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, personas)
    assert said in str(error.value) and "\n" not in str(error.value)


def values_of(n: int = 12, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Pairs whose difference is a shared step, whose pairs lie far apart: the mean of each side says little, the differences much."""
    rng = np.random.default_rng(seed)
    places, step = 20 * rng.normal(size=(n, 1, 6)), np.array([1.0, 0.5, 0, 0, 0, 0])
    values = np.concatenate([places + step + 0.1 * rng.normal(size=(n, 1, 6)), places + 0.1 * rng.normal(size=(n, 1, 6))]).astype(np.float32)
    return values, ["joy"] * n + ["joy (negative)"] * n


def test_directions_are_of_the_differences():
    values, labels = values_of()
    found = {name: choose_direction(name, values, labels, None, "resid_pre")["joy"].vectors[0] for name in ("mean_diff", "pc1")}
    differences = values[:12, 0].astype(float) - values[12:, 0]
    np.testing.assert_allclose(found["mean_diff"], differences.mean(axis=0), rtol=1e-5)
    axis = np.linalg.svd(differences, full_matrices=False)[2][0]
    cosine = found["pc1"] @ axis / np.linalg.norm(found["pc1"])
    assert abs(cosine) == pytest.approx(1, abs=1e-6) and found["pc1"] @ differences.mean(axis=0) > 0
    assert np.linalg.norm(found["pc1"]) == pytest.approx(np.linalg.norm(found["mean_diff"]), rel=1e-5)
    basis = fit_subspaces(values, labels, None, 2).bases["joy"][0]
    assert abs(basis[0] @ axis) == pytest.approx(1, abs=1e-5)


def test_the_sign_does_not_flip():
    """Whatever sign the eigenvectors have: sides exchanged turn the direction round, and pairs in another order leave it."""
    values, labels = values_of(seed=3)
    own = choose_direction("pc1", values, labels, None, "resid_pre")["joy"].vectors[0]
    swapped = choose_direction("pc1", np.roll(values, 12, axis=0), labels, None, "resid_pre")["joy"].vectors[0]
    np.testing.assert_allclose(swapped, -own, rtol=1e-4)
    order = np.random.default_rng(1).permutation(12)
    again = choose_direction("pc1", values[np.concatenate([order, 12 + order])], labels, None, "resid_pre")["joy"].vectors[0]
    np.testing.assert_allclose(again, own, rtol=1e-4)


def test_held_out_pairs():
    """By pairs the step is read, where by single texts it drowns; a direction of chance reads half of them."""
    values, labels = values_of(n=40)
    found = judge(values, labels, None, ["mean_diff", "pc1"]).set_index("method")
    assert found.loc["mean_diff", "accuracy"] == 1 and found.loc["mean_diff", "auc"] < 0.7 and found.loc["pc1", "n_positive"] == 40
    assert found.loc["mean_diff", "accuracy_low"] == pytest.approx(stats.binomtest(40, 40).proportion_ci(method="wilson").low)
    rng = np.random.default_rng(0)
    chance = [judge(rng.normal(size=(80, 1, 6)).astype(np.float32), labels, None, ["mean_diff"])["accuracy"].iloc[0] for _ in range(40)]
    assert 0.45 < np.mean(chance) < 0.55


def test_texts_that_pairs_share_stay_in_one_fold():
    """Guards: a pair that is judged by a direction that its own text was fitted in. One neutral text for all pairs is no such text."""
    pairs = [Pair("joy", f"glad {i}", f"stone {i // 2}") for i in range(10)]
    _, _, groups = prompts_of(pairs, None, "f")
    assert groups[:10] == (0, 0, 2, 2, 4, 4, 6, 6, 8, 8) == groups[10:]
    for fold in make_pair_folds(groups[:10]):
        held = {row % 10 // 2 for row in fold.judge}
        assert held.isdisjoint({row % 10 // 2 for row in fold.fit})
        assert set(fold.judge) == {row for h in held for row in (2 * h, 2 * h + 1, 10 + 2 * h, 11 + 2 * h)}
    assert len(set(prompts_of([Pair("joy", f"glad {i}", "stone") for i in range(10)], None, "f")[2])) == 10


def test_a_shuffled_control_exchanges_sides():
    """Each is plus or minus every pair's difference, so that a direction of pairs whose sides say nothing is one of its controls."""
    values, labels = values_of(n=6)
    differences = (values[:6, 0].astype(float) - values[6:, 0]) / 6
    for draw in range(5):
        control = shuffled_control("mean_diff", values[:, 0], labels, None, emotion="joy", seed=0, draw=draw)
        signs = np.linalg.lstsq(differences.T, control, rcond=None)[0]
        np.testing.assert_allclose(np.abs(signs), 1, atol=1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    save_tiny(folder / "model", "llama")
    write_scorer(folder / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(folder, {"gratitude": "you and the", "neutral": "stone brick road"}, n_fit=6, n_test=8)
    rng = np.random.default_rng(0)
    rows = [
        {"positive": f"g{i} {' '.join(rng.choice(['you', 'and', 'the'], 4))}", "negative": f"n{i} {' '.join(rng.choice(['ring', 'hour'], 3))}"}
        for i in range(14)
    ]
    (folder / "gratitude.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_sweep_and_vectors_on_pairs(place, tmp_path, monkeypatch):
    """The directions are the means of the paired differences of what plain transformers computes; prompts come from the data set."""
    common = {"model": str(place / "model"), "dataset": str(place / "data.jsonl"), "pairs": str(place / "gratitude.jsonl"), "device": "cpu"}
    settings = {**common, "scorers": str(place / "scorer"), "layers": "1,2", "sequence_length": "4", "max_samples": "3", "num_random": "1"}
    plan = make_plan(prepare(make_config("smoke", settings)))
    assert plan.config.emotions == ("gratitude",) and plan.inputs.prompts.compared_with == "the other side of each pair, 14 pairs"
    assert all(prompt.emotion == "neutral" for prompt in plan.inputs.prompts.test)
    fit = plan.inputs.prompts.fit
    tokens = encode_fit_texts(plan.loaded, fit, form_of(plan.config)).tokens
    streams = []
    for ids in tokens:
        states = plan.loaded.model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False).hidden_states
        streams.append([state[0, 1:].mean(dim=0).detach().numpy() for state in states[:-1]])
    means = np.array(streams)
    np.testing.assert_allclose(plan.swept.fit.directions["gratitude"].vectors, (means[:14] - means[14:]).mean(axis=0), atol=2e-5)
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    found = vectors(**common, components=2, n_bootstrap=8, say=lambda line: None)
    table = found.table("readout")
    assert set(table["emotion"]) == {"gratitude"} and (table["n_positive"] == 14).all() and table["accuracy"].max() == 1


def test_prompts_of_the_pairs_are_not_continued(tmp_path):
    """Guards: a text that is tested on what it was fitted on."""
    rows = [{"text": f"stone {i}", "emotion": "neutral", "role": "test"} for i in range(4)]
    rows += [{"text": f"{name} {i}", "emotion": name, "role": "fit"} for name in ("neutral", "joy") for i in range(2)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"positive": f"glad {i}", "negative": f"stone {i}", "emotion": "joy"} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    found = load_prompts(str(tmp_path / "d.jsonl"), max_samples=9, pairs=str(tmp_path / "p.jsonl"))
    assert [prompt.text for prompt in found.test] == ["stone 3"] and found.emotions == ("joy",)
    with pytest.raises(UserError, match="has no pairs of 'rage'; choose among joy"):
        load_prompts(str(tmp_path / "d.jsonl"), max_samples=9, pairs=str(tmp_path / "p.jsonl"), emotions=["rage"])
    with pytest.raises(UserError, match="personas='a.b' needs pairs="):
        load_prompts(max_samples=9, personas="a/b")
    with pytest.raises(UserError, match="is fitted already"):
        make_config("smoke", {"pairs": "p.jsonl", "directions": "x.safetensors"})


def test_pairs_of_two_emotions_are_compared_with_their_own_sides():
    labels = ["joy"] * 2 + ["joy (negative)"] * 2 + ["rage"] * 3 + ["rage (negative)"] * 3
    found = list(contrasts(labels, None))
    assert [(c.emotion, list(c.used), c.paired) for c in found] == [("joy", [0, 1, 2, 3], True), ("rage", [4, 5, 6, 7, 8, 9], True)]
