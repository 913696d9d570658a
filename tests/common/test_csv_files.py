"""CSV that a spreadsheet opens: texts are texts, numbers are numbers."""

from __future__ import annotations

import pandas as pd
import pytest

from emo_mlflow.common.csv_files import FORMULAS, write_csv


@pytest.mark.parametrize("start", FORMULAS)
def test_csv_texts_are_no_formulas_and_numbers_stay(start, tmp_path):
    """Guards: a model's, scorer's or column's name that a spreadsheet runs, in every table and with every start of a formula."""
    table = pd.DataFrame({"model": [f"{start}cmd|' /C calc'!A0", "gpt2"], "x": [-1.5, 2.0], f"{start}y": [1, 2], "z": [None, -3]})
    table["kind"] = pd.Categorical([f"{start}a", "b"])
    write_csv(table, tmp_path / "t.csv")
    again = pd.read_csv(tmp_path / "t.csv")
    guarded = "'" + start.replace("\r", "\n")  # a bare CR would begin a row
    assert again["model"][0].startswith(guarded) and again["kind"][0] == f"{guarded}a" and again.columns[2] == f"{guarded}y"
    assert again["x"].tolist() == [-1.5, 2.0] and again["z"][1] == -3
