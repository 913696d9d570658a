"""Files of directions: names that are refused, and names that stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from emo_mlflow.directions.files import load_directions, save_directions
from emo_mlflow.errors import UserError
from emo_mlflow.types import Direction


@pytest.mark.parametrize("name", ["../x", "a\nb", "<script>", "=cmd", "x" * 300])
def test_directions_with_odd_names_are_refused_before_a_sweep(name, tmp_path):
    """Guards: hours of work that MLflow then does not log, since the emotion's name makes no metric."""
    save_file({name: np.ones((2, 4), np.float32)}, str(tmp_path / "d.safetensors"), metadata={"site": "resid_pre"})
    with pytest.raises(UserError, match="direction"):
        load_directions(tmp_path / "d.safetensors")


def test_emotions_that_differ_in_case_stay_two(tmp_path):
    """Guards: a file per emotion, of which a file system that ignores case keeps one."""
    found = {name: Direction(name, "resid_pre", np.full((2, 4), i, np.float32)) for i, name in enumerate(("joy", "Joy", "JOY"))}
    save_directions(tmp_path / "d.safetensors", found, {})
    again = load_directions(tmp_path / "d.safetensors")[0]
    assert [float(again[name].vectors[0, 0]) for name in found] == [0, 1, 2]
