"""Scorer cards from elsewhere: plain data of bounded size, whose names are no paths."""

from __future__ import annotations

import pytest
import yaml
from tiny_scorers import write_scorer

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.cards import Card, Head, is_hub_id, load_card, source_key
from emo_mlflow.scoring.onnx import find_scorer


def test_a_card_with_a_path_for_a_name_is_refused(tmp_path):
    """Guards: a card that makes the cache folder of its export anywhere."""
    card = Card("../../x", "a/b", (Head("h", ("a",), "softmax"),))
    heads = ([{"name": "a/b", "labels": ["x"]}], [{"name": "a", "labels": ["x\ny"]}])
    for change in ({"name": "../../x"}, {"revision": "../../x"}, *({"heads": head} for head in heads)):
        payload = {"name": "x", "source": "a/b", "heads": [{"name": "h", "labels": ["a"], "activation": "sigmoid"}], **change}
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(payload), encoding="utf-8")
        with pytest.raises(UserError, match="not a name|no revision"):
            load_card(tmp_path / "card.yaml")
    assert "/" in card.key  # what would have become of it


def test_a_card_is_plain_data_of_bounded_size(tmp_path):
    """Guards: YAML tags that make objects, aliases of aliases that fill the memory, depth, and dates that are none."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(20)]
    for text in ("\n".join(lines), "!!python/object/apply:os.system ['id']", "[" * 5000, "name: 2020-99-99", "a: *b", "\x00", "- !!binary x"):
        (tmp_path / "card.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            load_card(tmp_path / "card.yaml")


def test_an_export_is_looked_for_in_the_cache_alone(tmp_path, monkeypatch):
    """Guards: a pointer in the cache, or a hub id, that leads out of it."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    write_scorer(tmp_path / "elsewhere")
    home = cache_folder() / "scorers" / source_key("owner/name")
    home.mkdir(parents=True)
    (home / "current").write_text("../../../elsewhere", encoding="utf-8")
    with pytest.raises(UserError, match="does not name an export"):
        find_scorer("owner/name")
    for name in ("../x", "a/..", "./x", "a/b/c", "a" * 300 + "/b"):
        assert not is_hub_id(name)
