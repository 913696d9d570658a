"""The scoring runtime, on a tiny graph made here and on the scorer that comes with the package."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_scorers import seal, write_scorer

import emo_mlflow
from emo_mlflow.errors import UserError
from emo_mlflow.scoring import cards, onnx
from emo_mlflow.scoring import loading as scorers
from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER, Head
from emo_mlflow.scoring.protocol import Scorers


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_scorer(tmp_path / "tiny")


def test_values_by_hand(tiny: Path) -> None:
    """Guards: softmax where sigmoid belongs, a temperature ignored, padding counted, columns in another order."""
    scores = emo_mlflow.score(["one two three", "two", ""], str(tiny))
    assert list(scores.columns) == ["tone.low", "tone.high", "signs.a", "signs.b", "raw.x", "raw.y"]
    assert (scores.dtypes == np.float32).all()
    np.testing.assert_allclose(scores[["raw.x", "raw.y"]], [[3.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(scores["signs.a"], 1 / (1 + np.exp([-1.5, -0.5, 0.0])), rtol=1e-6)
    np.testing.assert_allclose(scores[["tone.low", "tone.high"]].sum(axis=1), 1, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(["one", "two", "three", "other"]), max_size=40).map(" ".join)))
def test_rows_follow_texts(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Guards: rows in sorted order, repeated texts lost, a text cut at another length in a batch than alone."""
    loaded = scorers.load_scorers([str(write_scorer(tmp_path_factory.mktemp("scorer")))])
    together = loaded.score(texts)
    assert together.shape == (len(texts), len(loaded.metrics))
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(loaded.score([text])[0], row)


def test_distinct_texts_are_scored_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a sweep's repeated texts costing time again."""
    seen: list[str] = []
    original = onnx.OnnxScorer.score

    def spy(self: onnx.OnnxScorer, texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return original(self, texts)

    loaded = scorers.load_scorers([str(tiny)])
    monkeypatch.setattr(onnx.OnnxScorer, "score", spy)
    loaded.score(["one", "two", "one", "one"])
    assert seen == ["one", "two"]


def test_batches_keep_to_the_budget() -> None:
    """Guards: a batch of long texts that does not fit the memory, a row left out, padding from mixed lengths."""
    lengths = np.random.default_rng(0).integers(1, 3000, 400)
    batches = list(onnx._batches(lengths, 2048, equal=False))
    assert sorted(np.concatenate(batches)) == list(range(400))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= 2048
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert padded < 1.05 * lengths.sum()


@pytest.mark.parametrize("bad", [None, float("nan"), 3, b"bytes", "\ud800"])
def test_bad_text_names_its_row(tiny: Path, bad: object) -> None:
    """Guards: None scored as the word None, NaN as nan."""
    with pytest.raises(UserError, match="row 1"):
        emo_mlflow.score(["one", bad], str(tiny))  # type: ignore[list-item]  # the point of the test


@pytest.mark.parametrize("bad", ["one text", pd.DataFrame({"text": ["one"]})])
def test_not_a_list_of_texts(tiny: Path, bad: object) -> None:
    """Guards: a row of scores for each letter of a text, or for each column name of a frame."""
    with pytest.raises(UserError, match="expected a list of texts or a column, found a"):
        emo_mlflow.score(bad, str(tiny))  # type: ignore[arg-type]  # the point of the test


def test_series_keeps_its_index(tiny: Path) -> None:
    """Guards: scores joined to the wrong rows of a filtered frame."""
    assert list(emo_mlflow.score(pd.Series(["one", "two"], index=[7, 3]), str(tiny)).index) == [7, 3]


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER])
def test_changed_file_is_refused(tiny: Path, name: str) -> None:
    """Guards: a truncated or exchanged file that still loads and scores something."""
    content = (tiny / name).read_bytes()
    (tiny / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name} is corrupted"):
        scorers.load_scorers([str(tiny)])
    (tiny / name).unlink()
    with pytest.raises(UserError, match="incomplete"):
        scorers.load_scorers([str(tiny)])


def test_broken_graph_with_its_own_hash_is_refused(tiny: Path) -> None:
    """Guards: ONNX Runtime's own exception reaching the user."""
    (tiny / GRAPH).write_bytes(b"not a graph")
    seal(tiny, cards.load_card(tiny / CARD))
    with pytest.raises(UserError, match="cannot load"):
        scorers.load_scorers([str(tiny)])


def test_labels_must_match_the_graph(tmp_path: Path) -> None:
    """Guards: labels shifted against the outputs."""
    folder = write_scorer(tmp_path / "s", (Head("tone", ("a", "b", "c"), "softmax"),))
    with pytest.raises(UserError, match="3 labels for the output logits, which is 2 wide"):
        scorers.load_scorers([str(folder)])
    folder = write_scorer(tmp_path / "s", (Head("tone", ("a", "b"), "softmax", "probabilities"),))
    with pytest.raises(UserError, match="no output probabilities; it has logits"):
        scorers.load_scorers([str(folder)])


def test_two_scorers_side_by_side(tmp_path: Path) -> None:
    """Guards: a metric silently overwritten by another scorer's of the same name."""
    first = write_scorer(tmp_path / "a", name="a")
    second = write_scorer(tmp_path / "b", (Head("other", ("x", "y"), "identity"),), name="b", weight=2.0)
    loaded = scorers.load_scorers([str(first), str(second)])
    assert loaded.metrics[-2:] == ("other.x", "other.y")
    assert set(loaded.fingerprints) == {"a", "b"}
    np.testing.assert_allclose(loaded.score(["two"])[0, -2:], [4.0, 1.0])
    clash = write_scorer(tmp_path / "c", name="c")
    with pytest.raises(UserError, match=r"a and c both have tone\.low"):
        scorers.load_scorers([str(first), str(clash)])


@pytest.mark.parametrize("name", ["nonsense", "./no/such/folder", "card.yml"])
def test_unknown_scorer_says_the_choices(name: str) -> None:
    with pytest.raises(UserError, match="choose from embedded, hub, polite-bert"):
        scorers.load_scorers([name])


def test_hub_scorer_that_is_not_exported_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: a scorer that is missing being skipped, or found missing after the generation."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="run `emo-mlflow export --scorer roberta-sentiment`"):
        scorers.load_scorers(["hub"])


def test_fingerprint_changes_with_what_decides_a_score(tiny: Path) -> None:
    """Guards: scores from a cache that belong to another temperature."""
    card = cards.load_card(tiny / CARD)
    hotter = replace(card, heads=(replace(card.heads[0], temperature=3.0), *card.heads[1:]))
    assert len({card.fingerprint, hotter.fingerprint, replace(card, max_length=16).fingerprint}) == 3
    assert card.fingerprint == replace(card, description="other words").fingerprint


def test_score_cache_makes_a_second_run_free(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: cached rows for the wrong text, a cache that is not used, scores that differ from uncached ones."""
    cache = tmp_path / "cache" / "scores.db"
    texts = [f"one {'two ' * (i % 7)}{i}" for i in range(1200)]
    plain = scorers.load_scorers([str(tiny)]).score(texts)
    loaded = scorers.load_scorers([str(tiny)], cache)
    np.testing.assert_array_equal(loaded.score(texts[:700]), plain[:700])
    np.testing.assert_array_equal(loaded.score(texts), plain)
    monkeypatch.setattr(onnx.OnnxScorer, "score", lambda self, texts: np.zeros((len(texts), 6), np.float32))
    np.testing.assert_array_equal(scorers.load_scorers([str(tiny)], cache).score(texts[::-1]), plain[::-1])
    cache.write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match="score cache"):
        scorers.load_scorers([str(tiny)], cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown key colour"),
        ({"max_length": "long"}, "max_length must be of type int"),
        ({"heads": []}, "heads must be a list"),
        ({"heads": [{"name": "t"}]}, "labels missing"),
        ({"heads": [{"name": "t", "labels": ["a"], "activation": "relu"}]}, "activation 'relu' is not one of"),
        ({"heads": [{"name": "t", "labels": ["a", "a"]}]}, "t.a occurs more than once"),
        ({"heads": [{"name": "t", "labels": ["a"], "temperature": 0}]}, "temperature 0 is not"),
        ({"heads": [{"name": "t", "labels": ["a"], "thresholds": [0.1, 0.2]}]}, "2 thresholds for 1 labels"),
        ({"source": None}, "source must be of type str"),
    ],
)
def test_bad_card_is_refused(change: dict[str, object], message: str) -> None:
    """Guards: a misspelt key that is ignored, so that its default holds."""
    good = {"name": "n", "source": "s", "heads": [{"name": "t", "labels": ["a"], "activation": "sigmoid"}]}
    assert cards.parse_card(good, "card").metrics == ("t.a",)
    with pytest.raises(UserError, match=message):
        cards.parse_card(good | change, "card")


def test_cards_survive_yaml(tiny: Path) -> None:
    """Guards: a card that cannot be read back, for all that come with the package too."""
    for path in [tiny / CARD, *cards.builtin_cards().values(), cards.embedded_folder() / CARD]:
        card = cards.load_card(path)
        again = cards.parse_card(yaml.safe_load(cards.dump_card(card)), "again")
        assert again == card
        assert all(head.activation for head in card.heads)


def test_runtime_needs_onnxruntime_and_tokenizers_alone() -> None:
    """Guards: an import that makes scoring as heavy as training, at the top or hidden in a function."""
    heavy = ("torch", "transformers", "mlflow", "optimum", "onnx", "huggingface_hub", "sklearn", "matplotlib")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy}))\n"  # None there makes an import fail
        "import emo_mlflow; print(emo_mlflow.score(['thank you'])['goemotions.gratitude'][0] > 0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.fixture(scope="module")
def embedded() -> Scorers:
    return scorers.load_scorers(["embedded"])


def test_embedded_metrics(embedded: Scorers) -> None:
    """Guards: columns that other parts of the package rely on."""
    assert len(embedded.metrics) == 3 + 1 + 3 + 28
    expected = {"sentiment.negative", "politeness.score", "politeness.impolite", "goemotions.gratitude"}
    assert expected <= set(embedded.metrics)


def test_embedded_tells_emotions_apart(embedded: Scorers) -> None:
    """Guards: labels shifted, a graph of random weights, an empty or very long text that fails."""
    texts = [
        "Thank you so much, I really appreciate your help!",
        "I am furious! This makes me so angry, you idiot.",
        "I'm so sorry, I really regret what I did.",
        "",
        "word " * 2000,
        "とても嬉しい 😀",
    ]
    scores = pd.DataFrame(embedded.score(texts), columns=list(embedded.metrics))
    assert np.isfinite(scores.to_numpy()).all()
    emotions = scores.filter(like="goemotions.")
    assert list(emotions.iloc[:3].idxmax(axis=1)) == ["goemotions.gratitude", "goemotions.anger", "goemotions.remorse"]
    assert scores["sentiment.positive"][0] > 0.8
    assert scores["sentiment.negative"][1] > 0.8
    assert scores["politeness.score"][0] > scores["politeness.score"][1] + 0.5


def test_embedded_scores_do_not_depend_on_the_batch(embedded: Scorers) -> None:
    """Guards: quantisation with one scale for the whole batch, which makes a text's score depend on its neighbours."""
    texts = [f"I {verb} you {'very ' * n}much" for verb in ("thank", "hate", "miss") for n in range(8)]
    texts.append("long " * 300)
    alone = np.concatenate([embedded.score([text]) for text in texts])
    np.testing.assert_allclose(embedded.score(texts), alone, atol=1e-4)


def test_embedded_quality_is_what_was_promised(embedded: Scorers) -> None:
    """Guards: weights exchanged for worse ones: the floor for the figures in the card."""
    (scorer,) = embedded.members
    quality = scorer.card.quality
    assert quality["goemotions"]["macro_f1"] >= 0.54
    assert quality["goemotions"]["macro_f1_cross_fitted"] >= 0.51
    assert quality["sentiment"]["macro_f1"] >= 0.72
    assert quality["politeness"]["pearson_r"] >= 0.73
    assert quality["politeness"]["cross_validation"]["pearson_r"] >= 0.75
    assert quality["int8_against_float32"]["goemotions_macro_f1_points"] < 0.5
    assert (cards.embedded_folder() / GRAPH).stat().st_size < 30e6
