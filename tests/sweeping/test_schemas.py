"""The tables of a sweep are written, read and described as they are declared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import synthetic_sweep

from emo_mlflow.errors import UserError
from emo_mlflow.settings.sweep import make_config, make_head_config
from emo_mlflow.sweeping.directions import make_conditions
from emo_mlflow.sweeping.files import read_table, with_settings
from emo_mlflow.sweeping.heads import head_conditions
from emo_mlflow.sweeping.results import condition_of
from emo_mlflow.sweeping.schemas import CONDITIONS, TABLES
from emo_mlflow.sweeping.tables import condition_rows
from emo_mlflow.tracking.record import write_artifacts
from emo_mlflow.types import Condition


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """What tracking writes of a sweep."""
    folder = tmp_path_factory.mktemp("artifacts")
    write_artifacts(synthetic_sweep("model-a", n_prompts=3, n_layers=2, n_random=2, settings={"alpha_unit": "residual", "seed": "4"}), folder)
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_a_file_says_what_its_columns_are(name, artifacts):
    """Guards: a column of another type in another version of pandas, and numbers whose unit only the documentation knows."""
    schema = pq.read_schema(artifacts / f"{name}.parquet")
    assert schema.names[: len(TABLES[name].columns)] == TABLES[name].names
    for field in schema:
        declared = TABLES[name].field(field.name)
        assert field.type == declared.type and field.metadata[b"description"] == declared.metadata[b"description"]
    units = {field.name: (field.metadata.get(b"unit") or b"").decode() for field in schema}
    assert units.get("nll", "nats per token") == "nats per token" and units.get("d_z", "standard deviations") == "standard deviations"


def conditions():
    given = {"alphas": "1,2", "num_random": "2", "site": "resid_post", "operation": "clamp", "alpha_unit": "residual", "alpha_schedule": "linear"}
    yield from make_conditions(make_config("smoke", {**given, "scope": "window", "patch_window": "2,3"}).resolved(("joy",), 12))
    heads = [("joy", layer, head, layer + head) for layer in range(2) for head in range(3)]
    effects = pd.DataFrame(heads, columns=["emotion", "layer", "head", "rank"])
    yield from head_conditions(make_head_config("smoke", {"top": "2", "num_random": "1", "layers": "all"}).resolved(("joy",), 2), effects)


def test_a_row_is_all_that_its_id_is_a_hash_of():
    """Guards: two conditions that look alike in the table, and an id that nobody can check."""
    table = condition_rows(list(conditions()))
    for row in table.to_dict("records"):
        assert condition_of(row).condition_id == row["condition_id"]


def test_what_an_earlier_version_did_not_write_comes_from_the_settings(artifacts, tmp_path):
    """Runs that were logged before are read as if they had been logged now."""
    now = read_table(artifacts / "conditions.parquet", "conditions", "r")
    now.drop(columns=list(CONDITIONS.later)).to_parquet(tmp_path / "conditions.parquet", index=False)
    then = read_table(tmp_path / "conditions.parquet", "conditions", "r")
    config = {"site": "resid_pre", "operation": "add", "alpha_unit": "vector", "alpha_schedule": "constant", "seed": 0}
    filled = with_settings(then, config)[list(now.columns)]
    pd.testing.assert_frame_equal(filled, now, check_dtype=False)


def test_text_that_is_no_utf8_is_refused(artifacts, tmp_path):
    """Guards: Arrow takes such bytes, so a comparison ended in a traceback where it looked at the text."""
    table = pq.read_table(artifacts / "conditions.parquet")
    ids = pa.array([b"\xb9" * 12, *(id.encode() for id in table["condition_id"].to_pylist()[1:])], pa.large_binary())
    damaged = pa.LargeStringArray.from_buffers(len(ids), ids.buffers()[1], ids.buffers()[2])
    pq.write_table(table.set_column(0, table.field(0), damaged), tmp_path / "conditions.parquet")
    with pytest.raises(UserError, match=r"conditions.parquet of run r cannot be read: .*index 0"):
        read_table(tmp_path / "conditions.parquet", "conditions", "r")


@pytest.mark.parametrize("edits", ["x", "joy@", "joy@3", "joy@3*1;", "joy@three*1"])
def test_edits_that_say_nothing_are_refused(edits, artifacts, tmp_path):
    table = read_table(artifacts / "conditions.parquet", "conditions", "r")
    table.loc[table["kind"] != "baseline", "edits"] = edits
    table.to_parquet(tmp_path / "conditions.parquet", index=False)
    with pytest.raises(UserError, match="has a condition whose edits are"):
        read_table(tmp_path / "conditions.parquet", "conditions", "r")


def test_a_table_that_is_not_as_declared_is_not_written(tmp_path):
    """Guards: a column that is added in one place alone."""
    table = condition_rows([Condition("baseline")])
    for wrong in (table, table.assign(n_patched=[0], other=[1])):
        with pytest.raises(ValueError, match="is declared to have"):
            CONDITIONS.write(wrong, tmp_path / "conditions.parquet")
