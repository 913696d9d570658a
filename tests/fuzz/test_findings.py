"""What the fuzz tests found, each as a test of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from emo_mlflow.cli.main import main
from emo_mlflow.directions.files import norms_from_metadata
from emo_mlflow.errors import UserError
from emo_mlflow.models.weights import read_header
from emo_mlflow.scoring.onnx import load_tokenizer
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.sweeping.directions import make_conditions
from emo_mlflow.sweeping.spool import Spool


@pytest.mark.parametrize("choice", ["none", "", "a-b", "1-", "9" * 5000, "all/0", "0-99999999999"])
def test_layers_of_any_command_are_a_choice(choice):
    """export-vectors --layers=none ended in int()'s traceback, and 0-99999999999 would have filled the memory."""
    with pytest.raises(UserError, match="not a choice of layers"):
        resolve_layers(choice, 4)


def test_numbers_of_thousands_of_digits():
    """int() refuses them with a ValueError of its own."""
    with pytest.raises(UserError, match="whole number"):
        make_config("smoke", {"seed": "9" * 5000})


def test_more_conditions_than_a_memory_holds():
    """num_random=10**12 listed conditions until the process was killed."""
    config = make_config("smoke", {"num_random": str(10**12), "layers": "0"}).resolved(("joy",), n_layers=1)
    with pytest.raises(UserError, match="more than a sweep holds"):
        make_conditions(config)


@pytest.mark.parametrize("norms", ["", "x", "[1, 2]", "[1, NaN, 2]", "{}", "[" * 9999, "[[1], [2], [3]]", "[-1, 1, 1]"])
def test_residual_norms_that_are_none(norms):
    """The metadata of somebody's directions ended in json's or numpy's traceback."""
    with pytest.raises(UserError, match="residual_norms"):
        norms_from_metadata({"residual_norms": norms}, 3)


@pytest.mark.parametrize("change", [{"shape": ["a"]}, {"shape": [1.5]}, {"shape": [True]}, {"data_offsets": [0, 1e9]}, {"data_offsets": [8, 0]}])
def test_headers_of_weights_with_wrong_numbers(change, tmp_path):
    """Texts and fractions for a shape reached the memory check, which multiplied them."""
    save_file({"x": np.ones(4, np.float32)}, str(tmp_path / "w.safetensors"))
    raw = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["x"] |= change
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(UserError, match="not a safetensors file"):
        read_header(tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["", "{}", "[", '{"version": "9"}'])
def test_tokenizers_of_scorers_that_are_none(text):
    """The tokenizers library raises plain Exception."""
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be loaded"):
        load_tokenizer(text, 8)


def test_a_spool_that_says_too_little(tmp_path):
    """A spool of another version ended in KeyError, and stopped every sweep that looked for unfinished ones."""
    spool = Spool(tmp_path)
    spool.append([1])
    with pytest.raises(UserError, match="does not begin"):
        spool.header()
    spool.path.unlink()
    spool.begin({"work": "w"})
    with pytest.raises(UserError, match="does not say its store"):
        spool.header()["store"]


@pytest.mark.parametrize("uri", ["?", "nonsense://x", "sqlite:////dev/null/folder/x.db"])
def test_stores_that_are_none(uri, tmp_path, monkeypatch):
    """MLflow's and SQLAlchemy's errors were tracebacks."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["compare", "--runs", "0" * 32, "--tracking-uri", uri])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert len([line for line in result.output.splitlines() if line.startswith("Error: ")]) == 1
