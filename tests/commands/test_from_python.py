"""The commands as functions: the run that the command would have left, with its tables and figures in hand; mistakes are a UserError at once."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from places import write_worded_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

import emo_mlflow
from emo_mlflow import UserError
from emo_mlflow.cli.main import main
from emo_mlflow.report.blocks import plain
from emo_mlflow.scoring.cards import Head

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    for name, kind in (("model", "llama"), ("other", "gpt2")):
        save_tiny(folder / name, kind)
    write_scorer(folder / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(folder, WORDS, n_fit=12, n_test=6)
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(place / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")


SMALL = {"model": "model", "dataset": Path("data.jsonl"), "scorers": ["scorer"], "device": "cpu"}
STUDIED = {**SMALL, "sequence_length": 4, "max_samples": 6, "alpha": 0.05, "procedure": "sequence", "budget": "5000texts"}
SWEPT = {**SMALL, "layers": [1, 2], "alphas": 1, "max_samples": 3, "sequence_length": 5, "num_random": 1}


def test_a_sweep_is_the_one_that_the_command_does(capsys):
    """Guards: values that mean something else as texts, and a result of another run."""
    found = emo_mlflow.sweep(**SWEPT, prepend_bos=True)
    assert f"Run        {found.run_id}" in capsys.readouterr().out
    words = ["sweep", "--layers", "1,2", "--alphas", "1", "--max-samples", "3", "--sequence-length", "5", "--num-random", "1", "--model", "model"]
    words += ["--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--prepend-bos", "true"]
    output = CliRunner().invoke(main, words).output
    typed = emo_mlflow.load_sweep(re.search(r"Run\s+([0-9a-f]{32})", output)[1])
    assert typed.run_id != found.run_id and typed.config == found.config
    pd.testing.assert_frame_equal(typed.completions, found.completions)
    pd.testing.assert_frame_equal(typed.effects, found.effects)


def test_a_result_can_be_read_and_looked_at(place):
    said: list[str] = []
    found = emo_mlflow.sweep(**SWEPT, say=said.append)
    assert any(line.startswith("View") for line in said)
    assert [sentence.split(":")[0] for sentence in found.answer] == ["gratitude", "anger"]
    assert found.figures == ("against_random", "layers", "price") and {"effects", "scores", "conditions"} <= set(found.tables)
    assert found.figure("layers")._repr_png_().startswith(b"\x89PNG")
    page = found._repr_html_()
    assert found.run_id in page and all(name in page for name in ("gratitude", "layers", "effects")) and repr(found).count("\n") == 2
    pd.testing.assert_frame_equal(found.table("effects"), found.effects)
    with pytest.raises(UserError, match="has no figure 'layer': it has against_random, layers, price"):
        found.figure("layer")
    with pytest.raises(UserError, match="has no table 'effect'"):
        found.table("effect")


def test_heads_vectors_align_and_study(place):
    quiet = {**SMALL, "say": lambda line: None}
    heads = emo_mlflow.heads(**quiet, layers=[1, 2], top=1, max_samples=2, sequence_length=4, num_random=1)
    assert heads.kind == "heads" and "direct_effect" in heads.figures and heads.conditions["head"].notna().any()
    quiet.pop("scorers")
    vectors = emo_mlflow.vectors(**quiet, n_bootstrap=8, components=2)
    assert vectors.kind == "vectors" and vectors.figures == ("norms", "readout", "subspaces")
    assert set(vectors.table("readout")["emotion"]) == {"gratitude", "anger"} and any("best" in sentence for sentence in vectors.answer)
    model = quiet.pop("model")
    align = emo_mlflow.align(**quiet, model_a=model, model_b="other", n_random=4, n_permutations=4, k_max=2)
    assert align.kind == "alignment" and {"overlap", "maps", "directions"} <= set(align.tables) and len(align.figures) > 0
    study = emo_mlflow.study(**STUDIED, say=lambda line: None, controls=["isotropic"])
    assert study.kind == "study" and len(study.answer) == 2 and set(study.table("verdicts")["emotion"]) == {"gratitude", "anger"}


@pytest.mark.parametrize(
    ("call", "settings", "said"),
    [
        ("sweep", {"layer": 1}, "unknown parameter 'layer'"),
        ("sweep", {"layers": [9]}, "layer"),
        ("sweep", {"profile": "huge"}, "huge"),
        ("heads", {"dataset": "nowhere.csv"}, "nowhere.csv"),
        ("vectors", {"components": 0}, "components"),
        ("align", {"model": "model"}, "unknown parameter 'model'"),
        ("study", {"budget": "soon"}, "budget='soon'"),
        ("study", {"controls": []}, "controls=[] is neither a text, a number, nor a list of them"),
        ("sweep", {"emotions": set()}, "emotions=set() is neither"),
        ("sweep", {"layers": [[1, 2], [2, 3]]}, "layers=[1, 2] is neither"),
        ("sweep", {"dataset": pd.DataFrame({"text": ["a"]})}, "is neither a text"),
        ("sweep", {"tracking_uri": Path("mlruns")}, "is no text: give an address such as 'sqlite:///mlflow.db'"),
    ],
)
def test_mistakes(call, settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        getattr(emo_mlflow, call)(**{"model": "model", **settings} if call != "align" else settings, say=lambda line: None)


@pytest.mark.parametrize("name", ["sweep", "study", "vectors"])
def test_examples_in_docstrings(name, capsys):
    """They run as they stand, on a small model and few texts."""
    lines = re.findall(r"^ {8}(.+)$", getattr(emo_mlflow, name).__doc__.split("Args:")[0].split("Raises:")[0], re.M)
    own = {"sweep": SWEPT, "vectors": {**SMALL, "n_bootstrap": 8, "components": 2}, "study": {**STUDIED, "controls": "isotropic"}}[name]
    own = {key: value for key, value in own.items() if name != "vectors" or key != "scorers"}

    class Small:
        """The package, for which every model is the small one."""

        def __getattr__(self, called: str):
            return lambda **settings: getattr(emo_mlflow, called)(**{**settings, **own})

    names = {"emo_mlflow": Small()}
    for line in lines:
        exec(line, names)
    assert len(lines) >= 3 and isinstance(names["found"], emo_mlflow.LoggedRun)


def test_sentences_are_what_was_escaped():
    from emo_mlflow.report.blocks import escape

    for text in ("a_b *c* [d](e) | <f> & $x$", "# no heading", "1. no list", "- dash first", "http://x.org me@x.org www.x.org", "back\\slash `code`"):
        assert plain(f"- {escape(text)}") == text
