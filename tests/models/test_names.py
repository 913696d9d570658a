"""What may name a model and its revision."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from emo_mlflow.cli.main import main
from emo_mlflow.errors import UserError
from emo_mlflow.models.names import resolve


@pytest.mark.parametrize("revision", ["../../x", "..", "a b", "a\nb", "/etc", "-x", "a//b"])
def test_revisions_are_no_paths(revision):
    """Guards: a file outside the hub's cache, read as if it held a commit."""
    with pytest.raises(UserError, match="no revision"):
        resolve("gpt2", revision)
    assert resolve("owner/name@refs/pr/1").revision == "refs/pr/1"


@pytest.mark.parametrize("name", ["~nobody-is-called-this/x", "x" * 5000, "a\x00b"])
def test_model_names_that_no_file_system_takes(name):
    """Guards: a traceback of pathlib."""
    result = CliRunner().invoke(main, ["sweep", "--model", name])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
