"""MLflow models as scorers, really logged and registered: what they take, what they give, and what is refused."""

from __future__ import annotations

import mlflow
import numpy as np
import pandas as pd
import pytest
from emo_mlflow.evaluators.pyfunc import log_scorer
from mlflow import MlflowClient
from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel
from tiny_scorers import write_scorer

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.loading import load_scorer, load_scorers
from emo_mlflow.tracking.store import as_active

TEXTS = ["Oh!", "one two", "", "NO!!"]


class Marks(PythonModel):
    """Counts exclamation marks and capitals; `gives` says in which shape."""

    def __init__(self, gives: str, column: str = "text") -> None:
        self.gives, self.column = gives, column

    def predict(self, context, model_input, params=None):
        texts = list(model_input[self.column])
        marks = [text.count("!") for text in texts]
        return {
            "frame": lambda: pd.DataFrame({"marks": marks, "capitals": [sum(map(str.isupper, text)) for text in texts]}),
            "array": lambda: np.array(marks, float),
            "list": lambda: marks,
            "series": lambda: pd.Series(marks, name="marks"),
            "words": lambda: ["many" if n else "none" for n in marks],
            "one": lambda: [1.0],
            "error": lambda: 1 / 0,
            "unnamed": lambda: pd.DataFrame({"a/b": marks}),
        }[self.gives]()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a registered model per shape."""
    folder = tmp_path_factory.mktemp("models")
    uri = f"sqlite:///{folder}/mlflow.db"
    with as_active(uri), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment("models", f"file://{folder}/artifacts"))
        for gives in ("frame", "array", "list", "series", "words", "one", "error", "unnamed"):
            mlflow.pyfunc.log_model(name="m", python_model=Marks(gives), registered_model_name=gives, pip_requirements=[])
        text = pd.DataFrame({"comment": ["a"]})
        named = infer_signature(text, [1.0])
        mlflow.pyfunc.log_model(name="m", python_model=Marks("list", "comment"), registered_model_name="named", pip_requirements=[], signature=named)
        two = infer_signature(pd.DataFrame({"text": ["a"], "other": ["b"]}), [1.0])
        mlflow.pyfunc.log_model(name="m", python_model=Marks("list"), registered_model_name="two", pip_requirements=[], signature=two)
        numbers = infer_signature(pd.DataFrame({"text": [1.0]}), [1.0])
        mlflow.pyfunc.log_model(name="m", python_model=Marks("list"), registered_model_name="numbers", pip_requirements=[], signature=numbers)
        log_scorer(str(write_scorer(folder / "tiny")), registered_model_name="tiny-model")
        MlflowClient().set_registered_model_alias("frame", "champion", 1)
    return uri, folder


@pytest.fixture(autouse=True)
def active(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with as_active(store[0]):
        yield


def test_whatever_shape_a_model_gives_becomes_columns():
    frame = load_scorer("models:/frame/1")
    assert frame.name == "frame" and frame.metrics == ("frame.marks", "frame.capitals")
    assert frame.score(TEXTS).tolist() == [[1, 1], [0, 0], [0, 0], [2, 2]] and frame.score(TEXTS).dtype == np.float32
    assert frame.score([]).shape == (0, 2)
    for name, metric in (("array", "array.score"), ("list", "list.score"), ("series", "series.marks"), ("named", "named.score")):
        scorer = load_scorer(f"models:/{name}/1")
        assert scorer.metrics == (metric,) and scorer.score(TEXTS)[:, 0].tolist() == [1, 0, 0, 2]
    assert load_scorer("models:/frame@champion").fingerprint == frame.fingerprint != load_scorer("models:/array/1").fingerprint


def test_a_logged_scorer_has_its_own_metrics_again(store):
    """Guards: `goemotions.gratitude` under another name, so that it is no emotion's own label any more."""
    again, first = load_scorers(["models:/tiny-model/1"]), load_scorers([str(store[1] / "tiny")])
    assert again.metrics == first.metrics
    np.testing.assert_array_equal(again.score(TEXTS), first.score(TEXTS))
    assert again.agreement == {"tiny-model": []} and again.costs == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/absent/1", "cannot load the scorer models:/absent/1"),
        ("models:/frame/7", "cannot load the scorer"),
        ("models:/frame@nobody", "cannot load the scorer"),
        ("models:/frame", "is not of the form models:/NAME/VERSION"),
        ("models:/", "is not of the form"),
        ("models:/a/b/1", "is not of the form"),
        ("models:/words/1", "something other than numbers: .*none"),
        ("models:/one/1", "gave 1 rows for 2 texts"),
        ("models:/error/1", "cannot score a column 'text' of texts: .*division by zero"),
        ("models:/unnamed/1", "column 'unnamed.a/b' is not a name"),
        ("models:/two/1", "takes text, other: a scorer takes one column of texts"),
        ("models:/numbers/1", "takes text: a scorer takes one column of texts"),
    ],
)
def test_a_model_that_is_no_scorer_is_a_line(name, message):
    with pytest.raises(UserError, match=message):
        load_scorer(name)


def test_the_active_store_is_as_it_was(monkeypatch):
    before = mlflow.get_tracking_uri()
    with pytest.raises(UserError), as_active("sqlite:///elsewhere.db"):
        assert mlflow.get_tracking_uri() == "sqlite:///elsewhere.db"
        raise UserError("x")
    with as_active(None):
        assert mlflow.get_tracking_uri() == before
    assert mlflow.get_tracking_uri() == before
