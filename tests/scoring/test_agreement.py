"""What the embedded scorer's card says of its agreement with readers is what the labelled texts say; and other cards' are doubted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from emo_mlflow.errors import UserError
from emo_mlflow.report.agreement import agreement_paragraphs
from emo_mlflow.scoring.agreement import Agreement, parse_agreements
from emo_mlflow.scoring.cards import CARD, dump_card, embedded_folder, load_card
from emo_mlflow.scoring.loading import load_scorers

ROOT = Path(__file__).parents[2]
ROW = Agreement("a.b", "anger", "auc", "all", 100, 0.9, 0.8, 1.0, 30, 0.7, 0.1, 0.02)


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import readers

        yield readers
    sys.modules.pop("readers", None)


def test_the_cards_figures_are_those_of_the_labels(bench):
    """Guards: a scorer that is trained anew, or labels that are added, with the old figures in the card. `python bench/readers.py --write`."""
    kept = load_card(embedded_folder() / CARD).readers
    found = bench.agreements(bench.read(), 2)
    assert len(kept) == len(found) == 30
    for old, new in zip(kept, found, strict=True):
        assert replace(old, value=0, low=0, high=0, in_hits=0, elsewhere=0, calibration_error=0) == replace(
            new, value=0, low=0, high=0, in_hits=0, elsewhere=0, calibration_error=0
        ) or old.measure == "spearman"
        assert (old.value, old.in_hits, old.calibration_error) == pytest.approx((new.value, new.in_hits, new.calibration_error), abs=0.005)
        assert old.low < old.value <= old.high
        assert old.measure == "auc" or (old.at_most == pytest.approx(new.at_most) and old.value < old.at_most)


def test_the_documents_have_the_cards_figures():
    rows = {(row.metric, row.texts): row for row in load_card(embedded_folder() / CARD).readers}
    metrics, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/metrics.md", "README.md"))
    for row in rows.values():
        assert f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]" in metrics, row
        assert row.at_most is None or f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}] of {row.at_most:.2f}" in metrics, row
    for metric in ("goemotions.gratitude", "goemotions.remorse", "goemotions.anger", "politeness.score"):
        assert f"{rows[metric, 'all'].value:.2f}" in readme, metric


def test_a_report_says_it_in_one_sentence_of_each_scorer():
    scorers = load_scorers(["embedded"])
    (paragraph,) = agreement_paragraphs({"agreement": scorers.agreement}, {"goemotions.anger"})
    assert paragraph.text.startswith("On 848 texts") and "goemotions.anger with an AUC of 0.9" in paragraph.text
    assert "gratitude" not in paragraph.text and "sentiment by a rank correlation of 0.7" in paragraph.text
    assert "of 0.55 at most, because readers give many texts the same label" in paragraph.text
    few = {"agreement": {"x": [{**{k: v for k, v in vars(ROW).items() if v is not None}, "positives": 9}], "other": []}}
    said, unknown = agreement_paragraphs(few, {"a.b"})
    assert "(9 texts with a hint of anger, which are too few to say)" in said.text and "other" in unknown.text and "not been measured" in unknown.text
    assert agreement_paragraphs({}, {"a.b"}) == []


def test_a_cards_agreement_is_read_back_and_doubted(tmp_path):
    card = replace(load_card(embedded_folder() / CARD), readers=(ROW,))
    (tmp_path / CARD).write_text(dump_card(card), encoding="utf-8")
    assert load_card(tmp_path / CARD) == card and card.fingerprint == load_card(embedded_folder() / CARD).fingerprint
    plain = {name: value for name, value in vars(ROW).items() if value is not None}
    bad = [5, "text", [1], [{}], [{**plain, "x": 1}], [{**plain, "n": "many"}], [{**plain, "value": float("nan")}], [{**plain, "n": True}]]
    for payload in [*bad, [{**plain, "measure": "accuracy"}], [{**plain, "low": None}]]:
        with pytest.raises(UserError, match="^card"):
            parse_agreements(payload, "card")
    content = yaml.safe_load((tmp_path / CARD).read_text(encoding="utf-8"))
    (tmp_path / CARD).write_text(yaml.safe_dump({**content, "readers": {"a": 1}}), encoding="utf-8")
    with pytest.raises(UserError, match="readers must be a list"):
        load_card(tmp_path / CARD)
