"""Classifiers as people have them: no padding token, no known family, odd labels; scores equal transformers' own, a text at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifiers import LABELS, make_checkpoint, make_tokenizer, write_card
from emo_mlflow.evaluators import export
from emo_mlflow.evaluators.checkpoint import find_checkpoint, metric_labels
from emo_mlflow.evaluators.classifier import load_classifier
from tiny_models import tiny_tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

import emo_mlflow
from emo_mlflow.errors import UserError
from emo_mlflow.scoring import cards

TEXTS = [
    "",
    "thank you",
    "I am so sorry about that, it will not happen again!",
    "ありがとう 😊",
    "no " * 300,
    "that is fine",
]
SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "problem_type": "single_label_classification",
    "id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))


def config_of(family: str, entries: dict[str, Any]) -> Any:
    """A small config of a family."""
    unnamed = family == "xlnet" or "n_positions" in entries  # XLNet has no length, and GPT-2 another name for it
    small = {key: value for key, value in SMALL.items() if not (unnamed and key == "max_position_embeddings")}
    if family == "xlnet":
        small |= {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
    return CONFIG_MAPPING[family](**(small | entries))


def save(folder: Path, family: str, tokenizer: PreTrainedTokenizerBase, **entries: Any) -> Path:
    """A random classifier whose probabilities differ between texts."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config_of(family, entries))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 8
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain(folder: Path, texts: list[str]) -> np.ndarray:
    """Transformers alone: probabilities of each text by itself, cut as the tokenizer cuts it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for text in texts:
        given = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**given).logits.softmax(-1)[0].numpy())
    return np.stack(found)


def without_padding() -> PreTrainedTokenizerBase:
    """Byte level with no token but the end of text and none put around a text: as GPT-2's."""
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.model_max_length = 64
    return tokenizer


def around_texts(limit: int = 64, **entries: Any) -> PreTrainedTokenizerBase:
    """Byte level with a start and an end around each text."""
    tokenizer = make_tokenizer(0)
    tokenizer.model_max_length = limit
    for name, value in entries.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("family", "entries", "gives_types"),
    [
        ("gpt2", {"pad_token_id": None}, False),
        ("gpt2", {"pad_token_id": None}, True),
        ("llama", {"pad_token_id": None}, False),
        ("xlnet", {"pad_token_id": 5}, True),
    ],
)
def test_decoders_without_padding_equal_transformers(
    family: str, entries: dict[str, Any], gives_types: bool, tmp_path: Path
) -> None:
    """Guards: a traceback for want of a padding token; a last token that is padding; token types that nobody gives to the graph."""
    tokenizer = without_padding() if family == "gpt2" else around_texts()
    tokenizer.model_input_names = ["input_ids", "attention_mask", *(["token_type_ids"] if gives_types else [])]
    folder = save(tmp_path / "model", family, tokenizer, **entries)
    export.export_scorer(str(folder), "float32")
    texts = TEXTS[1:] if family == "gpt2" else TEXTS  # of no tokens at all transformers makes a traceback
    scores = emo_mlflow.score(texts, str(folder)).to_numpy()
    np.testing.assert_allclose(scores, plain(folder, texts), atol=1e-5)
    assert np.ptp(scores, axis=0).max() > 0.05, "a constant classifier would pass anything"
    assert np.isfinite(emo_mlflow.score([""], str(folder)).to_numpy()).all()


@pytest.mark.parametrize(
    ("limit", "side", "longest"), [(64, "left", 64), (24, "right", 24), (int(1e30), "right", 64), (16, "left", 16)]
)
def test_texts_are_cut_as_the_tokenizer_cuts_them(limit: int, side: str, longest: int, tmp_path: Path) -> None:
    """Guards: the end of a long text scored where the classifier reads its start, and more of it than it was trained on."""
    folder = save(tmp_path / "model", "bert", around_texts(limit, truncation_side=side), pad_token_id=0)
    made = export.export_scorer(str(folder), "float32")
    assert cards.load_card(made / cards.CARD).max_length == longest
    texts = ["thank you " * 200 + "I hate it", "I hate it " + "thank you " * 200]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(folder)
    scores = emo_mlflow.score(texts, str(folder)).to_numpy()
    np.testing.assert_allclose(scores, plain(folder, texts), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "entries", "longest"),
    [
        ("roberta", {"pad_token_id": 1, "type_vocab_size": 1}, 62),
        ("camembert", {"pad_token_id": 3}, 60),
        ("longformer", {"pad_token_id": 1, "attention_window": 16}, 62),
        ("data2vec-text", {"pad_token_id": 1}, 62),
        ("mpnet", {"pad_token_id": 1}, 62),
        ("bert", {"pad_token_id": 0}, 64),
        ("gpt2", {"pad_token_id": 0, "n_positions": 40}, 40),
        ("xlnet", {}, 512),
    ],
)
def test_every_family_says_how_long_a_text_may_be(
    family: str, entries: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    """Guards: an index past the table of positions, whose first rows some families never use; a length that only some configs name so."""
    folder = tmp_path / "model"
    AutoModelForSequenceClassification.from_config(config_of(family, entries)).save_pretrained(folder)
    make_tokenizer(entries.get("pad_token_id", 0)).save_pretrained(folder)
    assert load_classifier(find_checkpoint(str(folder))).card.max_length == longest


def test_one_label_needs_a_word_on_what_it_gives(tmp_path: Path) -> None:
    """Guards: a softmax over one output, which is 1.0 for every text."""
    entries = {"id2label": {0: "toxic"}, "label2id": {"toxic": 0}, "pad_token_id": 0}
    folder = save(tmp_path / "model", "bert", around_texts(), **entries)
    with pytest.raises(UserError, match=r"one label \(toxic\).*sigmoid.*or identity"):
        export.export_scorer(str(folder))
    with pytest.raises(UserError, match=r"softmax over one label \(toxic\) is 1 for every text"):
        export.export_scorer(str(write_card(tmp_path / "a.yaml", folder, "softmax", ["toxic"])))
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        raw = [float(model(**tokenizer(text, truncation=True, return_tensors="pt")).logits) for text in TEXTS]
    for activation, expected in (("sigmoid", 1 / (1 + np.exp(-np.array(raw)))), ("identity", np.array(raw))):
        card = write_card(tmp_path / f"{activation}.yaml", folder, activation, ["toxic"])
        export.export_scorer(str(card), "float32")
        np.testing.assert_allclose(emo_mlflow.score(TEXTS, str(card))["mood.toxic"], expected, atol=1e-4)


def test_a_regressor_gives_its_score(tmp_path: Path) -> None:
    """Guards: a regressor of one output that is taken for a class."""
    entries = {"id2label": {0: "valence"}, "label2id": {"valence": 0}, "pad_token_id": 0, "problem_type": "regression"}
    folder = save(tmp_path / "model", "bert", around_texts(), **entries)
    assert find_checkpoint(str(folder)).card.heads[0].activation == "identity"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("😊", "😡", "😢"), ("smiling_face_with_smiling_eyes", "pouting_face", "crying_face")),
        (("+", "-", "0"), ("plus_sign", "hyphen_minus", "0")),
        (("खुशी", "दुःख", "प्रेम"), ("खुशी", "दुःख", "प्रेम")),
        (("สุข", "เศร้า"), ("สุข", "เศร้า")),
        (("Joy", "joy", "JOY!"), ("joy", "joy_1", "joy_2")),
        (("Très joyeux", "Tre\u0300s joyeux"), ("très_joyeux", "très_joyeux_1")),
        (("❤️", "❤", ""), ("heavy_black_heart", "heavy_black_heart_1", "label_2")),
        (("a" * 90 + "x", "a" * 90 + "y"), ("a" * 60, "a" * 60 + "_1")),
    ],
)
def test_labels_become_different_names(labels: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Guards: labels of emoji that are all `_`, and words that lose their vowel signs."""
    assert metric_labels(labels) == expected
    head = {"name": "m", "labels": list(expected), "activation": "sigmoid"}
    cards.parse_card({"name": "m", "source": "s", "heads": [head]}, "card")


def test_labels_are_numbered_from_nought(tmp_path: Path) -> None:
    """Guards: a traceback for keys that are no numbers; labels that slip by one."""
    folder = make_checkpoint(tmp_path / "model", "bert", "single_label_classification")
    config = json.loads((folder / "config.json").read_text())
    for keys in (("1", "2", "3"), ("a", "b", "c"), ("0", "2", "4")):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": dict(zip(keys, LABELS, strict=True))}))
        with pytest.raises(UserError, match="id2label must name the labels 0, 1"):
            find_checkpoint(str(folder))


def test_a_model_without_a_trained_classifier_is_refused(tmp_path: Path) -> None:
    """Guards: a classifier's weights that transformers draws at random, and scores of them."""
    folder = save(tmp_path / "model", "bert", around_texts(), pad_token_id=0)
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(UserError, match=r"no trained sequence classifier.*classifier\.bias"):
        export.export_scorer(str(folder))


def test_a_family_that_cannot_be_traced_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: the exporter's traceback."""
    folder = make_checkpoint(tmp_path / "model", "bert", "single_label_classification")

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Trying to export a model")

    monkeypatch.setattr("optimum.exporters.onnx.onnx_export_from_model", refuse)
    with pytest.raises(UserError, match="cannot export a classifier of the type bert to ONNX: Trying"):
        export.export_scorer(str(folder))
