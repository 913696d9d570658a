"""A sweep from settings to tables: what is refused before anything is generated, what fails alone, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from places import write_texts
from tiny_models import CONTEXT, save_tiny
from tiny_scorers import write_scorer

from emo_mlflow.directions.files import save_directions
from emo_mlflow.errors import UserError
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.sweeping.estimate import estimate
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare, tokens_by_prompt
from emo_mlflow.sweeping.run import run
from emo_mlflow.sweeping.stages import cells_in
from emo_mlflow.sweeping.tables import FirstLikelihoods, text_keys
from emo_mlflow.types import Completion

EMOTIONS = ("joy", "neutral")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    save_tiny(folder / "model", "gpt2")
    write_scorer(folder / "scorer")
    write_texts(folder, EMOTIONS, 6)
    return folder


def plan_of(place: Path, directions: Path | None = None, **given: str) -> Plan:
    settings = {"model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer")}
    settings |= {"layers": "1,2", "alphas": "1,8", "sequence_length": "6", "max_samples": "3", "num_random": "1", "device": "cpu"}
    return make_plan(prepare(make_config("smoke", {**settings, **given}), directions))


def test_a_sweep_measures_itself(place):
    """Speed, utilisation, memory and hygiene are metrics; progress counts cells and reaches their number."""
    plan = plan_of(place)
    seen: list[tuple[int, int]] = []
    kept: list[int] = []
    result = run(plan, [], lambda pack: kept.append(len(pack)), lambda done, total, figures: seen.append((done, total)))
    assert seen[0] == (0, plan.n_cells) and seen[-1] == (plan.n_cells, plan.n_cells) and sum(kept) == plan.n_cells
    metrics = result.metrics
    assert metrics["hygiene.max_logit_change"] == 0 and metrics["failed_cells"] == 0
    assert 0 < metrics["gemm_utilisation"] < 1 and metrics["peak_memory_gib"] > 0.05
    assert metrics["tokens_per_second"] == pytest.approx(6 * metrics["cells_per_second"], rel=0.02)
    guess = estimate(plan)
    assert guess.n_cells == plan.n_cells and guess.n_tokens == 6 * plan.n_cells and guess.seconds > 0


def test_an_alpha_that_overflows_fails_its_own_cells(place):
    """Guards: one condition's infinities in another's text, a sweep that stops, and effects made from failed cells."""
    result = run(plan_of(place, alphas="1,1e38"), [], lambda pack: None, lambda *args: None)
    conditions = result.conditions.set_index("condition_id")
    failed = result.completions[result.completions["failure"].notna()]
    assert len(failed) and (conditions.loc[failed["condition_id"], "alpha"] > 1).all()
    assert failed["failure"].str.contains("not finite").all()
    assert result.metrics["failed_cells"] == len(failed)
    good = result.completions[result.completions["failure"].isna()]
    alone = run(plan_of(place, alphas="1"), [], lambda pack: None, lambda *args: None).completions
    both = good.merge(alone, on=["condition_id", "prompt_id", "sample"])
    assert len(both) == len(alone) and (both["completion_x"] == both["completion_y"]).all()
    effects = result.effects.merge(conditions["alpha"], left_on="condition_id", right_index=True)
    assert (np.isfinite(effects["mean_diff"]) == (effects["alpha"] == 1)).all()


def test_what_cannot_work_is_refused_before_anything_is_generated(place, tmp_path):
    """A layer that is not there, prompts that do not fit, and directions that mean nothing in this model."""
    for given, match in (
        ({"layers": "4"}, "layer 4 does not exist: the model has layers 0 to 3"),
        ({"sequence_length": str(CONTEXT)}, "does not fit the model's context of 128"),
        ({"site": "resid_post", "layers": "0-9"}, "layer 9 does not exist"),
    ):
        with pytest.raises(UserError, match=match):
            plan_of(place, **given)
    plan = plan_of(place)
    joy = plan.swept.fit.directions["joy"]
    for broken, match in (
        (replace(joy, vectors=joy.vectors[:, :16]), "4 layers of width 32"),
        (replace(joy, vectors=joy.vectors[:3]), "4 layers of width 32"),
        (replace(joy, vectors=np.where(np.arange(32) == 5, np.nan, joy.vectors).astype(np.float32)), "not finite"),
        (replace(joy, vectors=np.where(np.arange(32) == 5, np.inf, joy.vectors).astype(np.float32)), "not finite"),
    ):
        save_directions(tmp_path / "broken.safetensors", {"joy": broken}, {"site": joy.site})
        with pytest.raises(UserError, match=match):
            plan_of(place, tmp_path / "broken.safetensors")
    save_directions(tmp_path / "other.safetensors", {"joy": joy}, {"site": joy.site, "model_fingerprint": "0" * 16})
    with pytest.raises(UserError, match="another model's weights"):
        plan_of(place, tmp_path / "other.safetensors")


def test_a_prompt_without_tokens_is_refused(place):
    """The text of a data set is never empty, but a tokenizer may leave nothing of it."""
    plan = plan_of(place, prepend_bos="false")
    whole = plan.loaded.tokenizer

    class Nothing:
        """A tokenizer that drops every text."""

        added_tokens_decoder, all_special_ids, unk_token_id = whole.added_tokens_decoder, whole.all_special_ids, None

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": []}

    nothing = replace(plan.loaded, tokenizer=Nothing())
    with pytest.raises(UserError, match="has no tokens"):
        tokens_by_prompt(nothing, plan.inputs.prompts.test, plan.config)


def test_a_text_has_one_likelihood():
    """Guards: an effect size of rounding errors, where a condition changed no text but was decoded in another pack."""
    rows = [("a", "p", "same", 3, 1.5, 0.5), ("b", "p", "same", 3, 1.5000001, 0.5000001), ("b", "q", "same", 3, 2.0, 0.4)]
    rows += [("c", "p", "other", 3, 1.7, 0.3), ("d", "p", "", 0, np.nan, np.nan)]
    texts = pd.DataFrame(rows, columns=["condition_id", "prompt_id", "completion", "n_tokens", "nll", "nll_sd"])
    keys = text_keys(texts)
    found = FirstLikelihoods(keys, texts)(keys, texts)
    np.testing.assert_array_equal(found["nll"], [1.5, 1.5, 2.0, 1.7, np.nan])
    np.testing.assert_array_equal(found["nll_sd"], [0.5, 0.5, 0.4, 0.3, np.nan])


def test_a_sweep_in_groups_is_the_sweep(place, tmp_path, monkeypatch):
    """Parts on disk, groups of a few conditions, and a resumed half give the tables of one piece; equal texts share a likelihood over groups."""
    given = {"temperature": "1", "samples_per_prompt": "2", "alphas": "0.001,4,1e38", "num_random": "7", "likelihoods": "few"}
    kept: list[list[Completion]] = []
    whole = run(plan_of(place, **given), [], lambda pack: kept.append(list(pack)), lambda *args: None)
    cells = [item for pack in kept for item in pack]
    monkeypatch.setattr("emo_mlflow.sweeping.tables.GROUP", 40)
    done = [cells[i : i + 7] for i in range(0, len(cells) // 2, 7)]
    parts = run(plan_of(place, **given), done, lambda pack: None, lambda *args: None, tmp_path)
    assert pq.ParquetFile(tmp_path / "completions.parquet").num_row_groups > 5 and len(list(tmp_path.glob("part-*"))) > 3
    for name in ("conditions", "completions", "scores", "effects"):
        pd.testing.assert_frame_equal(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
    assert parts.metrics["failed_cells"] == whole.metrics["failed_cells"] > 0
    assert parts.metrics["distinct_texts"] == whole.metrics["distinct_texts"] == whole.completions["completion"].nunique()


def test_packs_are_cut_in_turns(place, monkeypatch):
    """Every cell once, those of a turn before those of the next, and none that is done."""
    monkeypatch.setattr("emo_mlflow.sweeping.plan.TURN", 10)
    plan = plan_of(place)
    listed = [cell for pack in plan.packs(lambda cells: cells["prompt_id"].to_numpy() == next(iter(plan.tokens))) for cell in cells_in(pack)]
    cells = list(plan.cells())
    assert sorted(listed, key=cells.index) == [cell for cell in cells if cell.prompt_id != next(iter(plan.tokens))]
    turns = [cells.index(cell) // 10 for cell in listed]
    assert turns == sorted(turns) and turns[-1] > 0


def test_likelihoods_are_where_they_are_read(place):
    """`few` leaves out the random directions past the fifth, and changes no text and no other likelihood; `none` leaves out all."""
    given = {"num_random": "7", "layers": "2", "alphas": "4", "temperature": "1", "samples_per_prompt": "2"}
    whole, few, none = (run(plan_of(place, likelihoods=name, **given), [], lambda pack: None, lambda *args: None) for name in ("all", "few", "none"))
    keys = ["condition_id", "prompt_id", "sample"]
    both = whole.completions.merge(few.completions, on=keys, suffixes=("", "_few")).merge(few.conditions[["condition_id", "draw"]], on="condition_id")
    assert (both["completion"] == both["completion_few"]).all() and both["nll"].notna().all()
    past = (both["draw"] >= 5).fillna(False).to_numpy(bool)
    shared = both[~past].set_index(["prompt_id", "completion"]).index
    own = past & ~pd.MultiIndex.from_frame(both[["prompt_id", "completion"]]).isin(shared)  # an equal text has the likelihood of the other
    assert own.sum() > 5 and both.loc[own, ["nll_few", "broken_few"]].isna().all(axis=None)
    np.testing.assert_allclose(both.loc[~past, "nll_few"], both.loc[~past, "nll"], atol=1e-5)
    assert none.completions[["nll", "broken"]].isna().all(axis=None)
    assert estimate(plan_of(place, likelihoods="few", **given)).flops < estimate(plan_of(place, likelihoods="all", **given)).flops
