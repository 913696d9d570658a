"""Training, calibrating and measuring the embedded scorer, on a tiny encoder and a few made-up texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from emo_mlflow.evaluators import data, embedded_scorer, measures, training
from emo_mlflow.evaluators.network import OUTPUTS, EmotionNetwork, load_encoder, parameter_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

import emo_mlflow
from emo_mlflow.errors import UserError
from emo_mlflow.scoring import cards

LABELS = cards.load_card(cards.builtin_cards()["roberta-goemotions"]).heads[0].labels
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LABELS, "please", "not", "very"]


@pytest.fixture(scope="module")
def corpora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that name their label, so that a network can learn them; a third has a second label."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)

    def lines(n: int) -> str:
        rows = []
        for i in range(n):
            ids = [i % 28] if i % 3 else [i % 28, (i + 5) % 28]
            words = [LABELS[j] for j in ids] + list(generator.choice(["very", "not"], 1 + i % 9))
            rows.append(f"{' '.join(words)}\t{','.join(map(str, ids))}\tid{i}")
        return "\n".join(rows) + "\n"

    (folder / data.FILES[0]).write_text("\n".join(LABELS) + "\n")
    (folder / data.FILES[1]).write_text(lines(280))
    (folder / data.FILES[2]).write_text(lines(112))
    polite = [(f"please {'very ' * (i % 3)}", 1 + i / 200) for i in range(30)]
    polite += [("not " * (1 + i % 4), -i / 200) for i in range(30)]
    (folder / data.FILES[3]).write_text("sentence,score\n" + "".join(f'"{t}",{s}\n' for t, s in polite))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of one layer with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes), add_pooling_layer=False).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / cards.TOKENIZER))
    return folder


def test_sentiment_targets() -> None:
    """Guards: an ambiguous label given a sentiment, a text of two sentiments given one of them."""
    labels = ("joy", "anger", "surprise", "neutral")
    emotions = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=np.float32)
    expected = [[0, 0, 1], [1, 0, 0], [0, 0, 0], [0.5, 0, 0.5], [0, 1, 0]]
    np.testing.assert_array_equal(data.sentiment_targets(emotions, labels), expected)


def test_every_label_has_its_group() -> None:
    """Guards: a misspelt label that silently has no sentiment: 12 positive, 11 negative, 4 ambiguous, and neutral."""
    targets = data.sentiment_targets(np.eye(28, dtype=np.float32), LABELS)
    assert targets.sum(axis=0).tolist() == [11, 1, 12]
    without = [label for label, row in zip(LABELS, targets, strict=True) if not row.any()]
    assert without == ["confusion", "curiosity", "realization", "surprise"]


def test_politeness_classes_are_quartiles(corpora_folder: Path) -> None:
    """Guards: classes by fixed scores, or impolite and polite exchanged."""
    politeness = data.load_corpora(corpora_folder).politeness
    assert politeness.classes.sum(axis=0).tolist() == [15, 30, 15]
    assert politeness.classes[politeness.scores.argmax()].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("goemotions_train.tsv", "text without tabs\n", "line 1"),
        ("goemotions_dev.tsv", "text\t3,99\tid\n", "3,99 are not among the 28"),
        ("stanford_politeness_wikipedia_train.csv", "sentence,score\nhi,high\n", "expected the columns"),
        ("goemotions_labels.txt", None, "no goemotions_labels.txt in"),
    ],
)
def test_bad_corpus_is_refused(
    corpora_folder: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """Guards: a line that is skipped, and half an hour of training on what was left."""
    for file in data.FILES:
        (tmp_path / file).write_text((corpora_folder / file).read_text())
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        data.load_corpora(tmp_path)


@settings(max_examples=30, deadline=None)
@given(
    predicted=hnp.arrays(bool, (40, 3)),
    true=hnp.arrays(bool, (40, 3)),
    rows=hnp.arrays(np.int64, 40, elements=st.integers(0, 39)),
)
def test_f1_of_a_resample(predicted: np.ndarray, true: np.ndarray, rows: np.ndarray) -> None:
    """Guards: weighted counts that differ from counting the resampled rows themselves."""
    counts = np.bincount(rows, minlength=40)[None].astype(float)
    p, t = predicted[rows], true[rows]
    hits, wrong = (p & t).sum(axis=0), (p ^ t).sum(axis=0)
    expected = 2 * hits / np.maximum(2 * hits + wrong, 1)
    np.testing.assert_allclose(measures.f1_per_label(predicted, true, counts)[0], expected)
    np.testing.assert_allclose(measures.f1_per_label(p, t), expected)


def test_thresholds_find_the_gap() -> None:
    """Guards: thresholds of one label used for another, and a grid that misses rare labels' low probabilities."""
    generator = np.random.default_rng(0)
    true = generator.random((2000, 2)) < (0.3, 0.02)
    probabilities = np.where(true, (0.7, 0.12), (0.4, 0.04)) + generator.normal(0, 0.005, (2000, 2))
    thresholds = measures.tune_thresholds(probabilities.astype(np.float32), true)
    assert 0.41 < thresholds[0] < 0.69
    assert 0.05 < thresholds[1] < 0.11
    assert measures.cross_fitted_macro_f1(probabilities.astype(np.float32), true) > 0.99


@pytest.mark.parametrize("exclusive", [True, False])
def test_temperature_recovers_overconfidence(exclusive: bool) -> None:
    """Guards: a temperature that multiplies instead of divides."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 3)).astype(np.float32)
    if exclusive:
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = np.eye(3)[[generator.choice(3, p=row / row.sum()) for row in shares.astype(float)]]
    else:
        targets = (generator.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    found = measures.fit_temperature(3 * logits, targets.astype(np.float32), exclusive)
    assert found == pytest.approx(3, rel=0.1)


def test_length_batches_cover_all_rows_and_waste_little() -> None:
    """Guards: rows left out of an epoch, batches of mixed lengths, the same order in every epoch."""
    lengths = np.random.default_rng(0).integers(3, 80, 5000)
    generator = np.random.default_rng(1)
    first, second = (training.length_batches(lengths, 32, generator) for _ in range(2))
    assert sorted(np.concatenate(first)) == list(range(5000))
    assert sum(len(b) * lengths[b].max() for b in first) < 1.06 * lengths.sum()
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def test_padding_changes_nothing(encoder: Path) -> None:
    """Guards: padded positions in the mean or in the attention of a head."""
    torch.manual_seed(0)
    network = EmotionNetwork(load_encoder(encoder)).eval()
    ids, mask = torch.tensor([[2, 5, 6, 3]]), torch.ones((1, 4), dtype=torch.long)
    padded = torch.cat([ids, torch.zeros((1, 5), dtype=torch.long)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros((1, 5), dtype=torch.long)], dim=1)
    with torch.no_grad():
        alone, beside = network(ids, mask), network(padded, padded_mask)
    for name in OUTPUTS:
        torch.testing.assert_close(alone[name], beside[name], atol=1e-6, rtol=1e-5)


def test_learning_rates_fall_towards_the_embeddings(encoder: Path) -> None:
    """Guards: a parameter that no group trains, or heads at the encoder's rate."""
    network = EmotionNetwork(load_encoder(encoder))
    groups = parameter_groups(network, 1.0, 0.5, 0.1)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in network.parameters())
    assert {g["lr"] for g in groups} == {1.0, 0.5, 0.25}
    assert all((g["weight_decay"] == 0) == (g["params"][0].ndim == 1) for g in groups)


def test_training_learns_and_repeats_itself(corpora_folder: Path, encoder: Path) -> None:
    """Guards: a loss that trains nothing, weights that differ from run to run."""
    corpora = data.load_corpora(corpora_folder)
    once = training.Recipe(epochs=1, lr=3e-3, batch_size=16)
    first, second = (training.train(corpora, encoder, once).state_dict() for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    network = training.train(corpora, encoder, replace(once, epochs=25))
    tokenizer = training.load_tokenizer(encoder / cards.TOKENIZER, 32)
    logits = training.predict(network, tokenizer, corpora.dev.texts)
    assert measures.f1_per_label(logits["goemotions"] > 0, corpora.dev.emotions > 0).mean() > 0.8
    scores = training.predict(network, tokenizer, corpora.politeness.texts)["politeness_score"][:, 0]
    assert measures.pearson(scores, corpora.politeness.scores) > 0.8


def test_train_scorer_writes_a_folder_that_scores(
    corpora_folder: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: a card that lacks figures or thresholds, a graph with outputs exchanged, an old folder mixed in."""
    monkeypatch.setattr(embedded_scorer, "encoder_folder", lambda: encoder)
    monkeypatch.setattr(embedded_scorer, "N_FOLDS", 2)
    monkeypatch.setattr(embedded_scorer, "CV_EMOTION_TEXTS", 40)
    out = tmp_path / "made"
    out.mkdir()
    for name in (cards.CARD, "stale"):  # an earlier scorer's folder
        (out / name).touch()
    card = embedded_scorer.train_scorer(corpora_folder, out, epochs=2, seed=1, cross_validate=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([cards.CARD, cards.GRAPH, cards.TOKENIZER])
    assert cards.load_card(out / cards.CARD).quality == card.quality
    assert -1 <= card.quality["politeness"]["pearson_r"] <= 1
    assert len(card.quality["politeness"]["cross_validation"]["pearson_r_by_fold"]) == 2
    assert set(card.quality["goemotions"]["per_label"]) == set(LABELS)
    assert len(card.heads[-1].thresholds) == 28
    assert set(card.provenance["data_sha256"]) == set(data.FILES)
    scores = emo_mlflow.score(["joy very", "anger not"], str(out))
    np.testing.assert_allclose(scores.filter(like="sentiment.").sum(axis=1), 1, rtol=1e-5)
    assert [path for path in tmp_path.iterdir() if path != out] == []


def test_training_does_not_replace_a_folder_of_other_things(tmp_path):
    """Guards: `--out` of a folder that somebody works in, which the finished scorer would take the place of."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        embedded_scorer.train_scorer(tmp_path, tmp_path)
    assert (tmp_path / "thesis.tex").exists()
