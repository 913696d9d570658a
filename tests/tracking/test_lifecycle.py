"""How a run ends."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

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
