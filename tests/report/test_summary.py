"""A sweep's screen and description: what is called an effect, whose label it is, and where text breaks."""

from __future__ import annotations

from synthetic import synthetic_sweep, with_effects

from emo_mlflow.report.figures import MOST_ROWS, heat_maps
from emo_mlflow.report.findings import findings
from emo_mlflow.report.sweep import summary_lines, verdicts, write_report
from emo_mlflow.sweeping.schemas import FLUENCY
from emo_mlflow.tracking.record import sweep_record


def test_a_label_that_is_not_the_emotions_own_is_not_called_so():
    """Guards: `goemotions.disgust` as the own label of `wistful`."""
    result = synthetic_sweep(emotions=("gratitude", "wistful"), alphas=(1.0,))
    text = "\n".join(summary_lines(result))
    own, other = text.split("No scorer has a label for wistful; the largest change of any label")
    assert "Strongest effect of each direction on its own label" in own and "wistful" not in own and "wistful" in other
    assert "no scorer has a label for it" in verdicts(result, findings(result))[1] and "raised" in verdicts(result, findings(result))[0]
    alone = "\n".join(summary_lines(synthetic_sweep(emotions=("wistful",), alphas=(1.0,))))
    assert "own label" not in alone and "No scorer has a label for wistful" in alone


def test_a_strangers_label_is_the_one_that_changed_most():
    """Guards: "the largest change of any label" beside a change of 0.00, which was the most regular one."""
    result = synthetic_sweep(emotions=("wistful",), alphas=(1.0,))
    effects, steered = result.effects, result.conditions.loc[result.conditions["kind"] == "emotion", "condition_id"]
    own = effects["condition_id"].isin(steered)
    large, regular = own & (effects["metric"] == "goemotions.joy"), own & (effects["metric"] == "goemotions.anger")
    effects.loc[own, ["mean_diff", "d_z"]] = [0.001, 0.1]
    effects.loc[large, ["mean_diff", "d_z"]] = [-0.2, -1.0]
    effects.loc[regular, ["mean_diff", "d_z"]] = [0.01, 9.0]
    (found,) = findings(with_effects(result, effects))
    assert found.chosen and found.metric == "goemotions.joy" and found.difference == -0.2 and len(found.randoms) == 5


def test_a_change_that_is_none_is_not_called_an_effect():
    result = synthetic_sweep(emotions=("anger",), alphas=(1.0,))
    small = result.effects["mean_diff"].clip(-0.01, 0.01)
    flat = with_effects(result, result.effects.assign(mean_diff=small))
    assert "anger: no effect of 0.02 or more" in summary_lines(flat)
    (verdict,) = verdicts(flat, findings(flat))
    assert "no effect of 0.02 or more" in verdict and "raised" not in verdict
    assert not any("no effect" in line for line in summary_lines(result))


def test_broken_text_is_marked():
    lines = summary_lines(synthetic_sweep(emotions=("anger",), layers=(3,), alphas=(4.0,)))
    assert next(line for line in lines if line.startswith("anger")).endswith(" !") and any(line.startswith("!: breaks text") for line in lines)
    whole = summary_lines(synthetic_sweep(emotions=("anger",), layers=(3,), alphas=(1.0,)))
    assert not any("!" in line for line in whole)


def test_a_runs_numbers_say_what_its_description_says():
    """Guards: a run's page whose metrics show the last layer's change, and whose description another."""
    result = synthetic_sweep(emotions=("anger",), alphas=(1.0,))
    record = sweep_record(result)
    metrics = {name: value for name, value, _ in record.metrics}
    best = {name: metrics[f"best.anger.{name}"] for name in ("diff", "layer", "alpha", "broken")}
    own = result.effects.merge(result.conditions, on="condition_id")
    own = own[(own["kind"] == "emotion") & (own["metric"] == "goemotions.anger")]
    row = own.loc[own["mean_diff"].idxmax()]
    assert (best["diff"], best["layer"], best["alpha"]) == (row["mean_diff"], row["layer"], row["alpha"])
    assert f"layer {row['layer']}" in record.note and f"{best['diff']:+.2f}" in record.note
    assert all(record.params.values()) and next(iter(metrics)).startswith("best.")  # MLflow shows them in the order in which they came


def test_without_likelihoods_the_report_says_that_the_price_is_not_known(tmp_path):
    """Guards against likelihoods=none ending in KeyError: 'fluency.broken' when everything is computed."""
    result = synthetic_sweep(emotions=("anger",), alphas=(1.0,))
    known = ~result.effects["metric"].isin([FLUENCY[name] for name in ("broken", "nll")])
    numbers = result.effects.columns.drop(["condition_id", "metric", "n"])
    write_report(with_effects(result, result.effects.assign(**{name: result.effects[name].where(known) for name in numbers})), tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.png")) == ["against_random.png", "layers.png"]
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "what an effect costs is not known" in report and "price" not in report


def test_without_any_own_label_there_is_no_figure_of_what_effects_cost(tmp_path):
    """Guards: an empty figure, with an empty legend."""
    write_report(synthetic_sweep(emotions=("wistful",), alphas=(1.0,)), tmp_path)
    assert not (tmp_path / "figures" / "price.png").exists()
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "figures/price.png" not in report and "what an effect costs is not known" not in report


def test_a_sweep_of_very_many_strengths_has_figures_that_can_be_drawn():
    """Guards against a picture as many inches high as there are strengths, which no backend draws."""
    figure = heat_maps(synthetic_sweep(emotions=("anger",), n_prompts=2, n_layers=2, n_random=0, alphas=[1 + i / 8 for i in range(500)]))
    maps = [axes for axes in figure.axes if axes.get_images()]
    assert figure.get_figheight() < 60 and all(axes.get_images()[0].get_array().shape == (500, 2) for axes in maps)
    assert max(len(axes.get_yticks()) for axes in maps) <= MOST_ROWS
