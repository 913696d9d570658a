"""Reads the newest sweep of a model from a tracking server, pulls its files, and draws a figure of its own.

python docs/examples/read_a_sweep.py http://localhost:5000 smollm2-135m out
"""

# [find]
import sys
from pathlib import Path

import mlflow
from matplotlib.figure import Figure

import emo_mlflow

server, model, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sweeps = emo_mlflow.find_sweeps(model=model, tracking_uri=server)  # finished ones, newest first
sweep = emo_mlflow.load_sweep(sweeps["run_id"].iloc[0], tracking_uri=server)
sizes = f"{len(sweep.conditions)} conditions and {len(sweep.prompts)} prompts"
print(f"{len(sweeps)} sweeps of {model}; the newest has {sizes}")

# [tables]
effects = sweep.effects.merge(sweep.conditions, on="condition_id")
gratitude = effects[(effects["emotion"] == "gratitude") & (effects["metric"] == "goemotions.gratitude")]
strongest = gratitude[gratitude["kind"] == "emotion"].nlargest(1, "mean_diff").iloc[0]
print(
    f"largest rise: {strongest['mean_diff']:+.2f} at layer {strongest['layer']}, alpha {strongest['alpha']:g}"
)

texts = sweep.completions.merge(sweep.prompts, on="prompt_id").merge(
    sweep.scores, on=["condition_id", "prompt_id", "sample"]
)
for _, row in (
    texts[texts["condition_id"] == strongest["condition_id"]].nlargest(3, "goemotions.gratitude").iterrows()
):
    print(f"{row['goemotions.gratitude']:.2f}  {row['text']} [...] {row['completion']}")

# [files]
out.mkdir(parents=True, exist_ok=True)
mlflow.artifacts.download_artifacts(
    run_id=sweep.run_id, artifact_path="figures", dst_path=str(out), tracking_uri=server
)
mlflow.artifacts.download_artifacts(
    run_id=sweep.run_id, artifact_path="report.html", dst_path=str(out), tracking_uri=server
)

# [figure]
same = gratitude[gratitude["alpha"] == strongest["alpha"]]
profile = same[same["kind"] == "emotion"].set_index("layer")["mean_diff"].sort_index()
draws = same[same["kind"] == "random"].groupby("layer")["mean_diff"].agg(["min", "max"])

figure = Figure(figsize=(6.4, 3.2), layout="constrained")
axes = figure.subplots()
axes.axhline(0, color="#bbbbbb", lw=0.8)
axes.fill_between(
    draws.index.astype(int),
    draws["min"],
    draws["max"],
    color="#9aa5b1",
    alpha=0.4,
    lw=0,
    label="random directions, all draws",
)
axes.plot(
    profile.index.astype(int),
    profile,
    color="#b35806",
    marker="o",
    label="the direction for gratitude",
)
axes.set_xlabel("layer at which the direction is injected")
axes.set_ylabel("change of goemotions.gratitude")
axes.set_title(
    f"{model}, alpha = {strongest['alpha']:g}, {len(sweep.prompts)} prompts",
    loc="left",
    fontsize=10,
)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=9)
figure.savefig(out / "gratitude_by_layer.png", dpi=120)
