"""The notebook of the documentation: it runs as it stands, and what a code host shows of it is what it gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "study.ipynb"


def shown(cell: Any) -> list[set[str]]:
    """The kinds of what a cell shows."""
    return [set(output.get("data", {output["output_type"]: ""})) for output in cell["outputs"]]


def test_it_is_kept_with_what_it_shows():
    """Guards: a code host shows empty cells, an error, or somebody's folders."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in nbformat.reads(text, as_version=4)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum({"image/png"} <= kinds for cell in cells for kinds in shown(cell)) == 3
    assert not any(output["output_type"] in ("error", "stream") for cell in cells for output in cell["outputs"])
    assert "/work/" not in text and "/tmp/" not in text and "/home/" not in text and len(text) < 1_000_000


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    """With the real model, in an empty folder: every cell shows what the kept one does."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(NOTEBOOK, tmp_path)
    kept = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    ran = NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=900, kernel_name="python3", resources=resources).execute()
    for before, after in zip(kept["cells"], ran["cells"], strict=True):
        if before["cell_type"] == "code":
            now = [output for output in after["outputs"] if output.get("name") != "stderr"]  # bars
            assert shown(before) == shown({"outputs": now}), before["source"]
