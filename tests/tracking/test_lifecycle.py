"""How a run ends."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from emo_mlflow.errors import UserError
from emo_mlflow.tracking.lifecycle import run_context


def test_an_interrupt_that_became_another_error_leaves_a_stopped_run(tmp_path):
    """Ctrl-C inside PyTorch's vmap becomes a RuntimeError of PyTorch: runs of `vectors` and `align` ended FAILED by it."""
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(KeyboardInterrupt), run_context(client, "vectors", "vectors", experiment="e") as run_id:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("INTERNAL ASSERT FAILED")
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.data.tags["emo.failure"] == "interrupted"
    assert run.data.tags["mlflow.note.content"] == "Not finished: interrupted"


def test_the_page_of_a_sweep_that_was_stopped_says_how_to_go_on(tmp_path):
    """Guards: a run that is FAILED or KILLED in the table of runs, and nothing that says that its texts are kept."""
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError), run_context(client, "sweep", "sweep", experiment="e") as run_id:
        raise UserError("the disk is full")
    run = client.get_run(run_id)
    assert run.info.status == "FAILED" and f"`emo-mlflow sweep --resume {run_id}`" in run.data.tags["mlflow.note.content"]
