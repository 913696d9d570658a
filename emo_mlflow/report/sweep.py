"""A sweep's report: the answer first, then settings, figures, texts, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from emo_mlflow.common.columns import rows_of
from emo_mlflow.common.names import short_name
from emo_mlflow.report.agreement import agreement_paragraphs
from emo_mlflow.report.blocks import (
    Block,
    Bullets,
    Heading,
    Paragraph,
    Picture,
    Table,
    bullet_lists,
    to_html,
    to_markdown,
)
from emo_mlflow.report.figures import against_random, effect_against_price, heat_maps
from emo_mlflow.report.findings import BROKEN, SMALLEST_EFFECT, Finding, findings
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import save
from emo_mlflow.scoring.broken import RISE
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.sweeping.schemas import KEYS
from emo_mlflow.types import ASKING

EXAMPLES_PER_EMOTION = 8
IN_REPORT = 3
ASKED_BY = {"instruction": "an instruction", "examples": "{shots} texts of it in front"}
FIGURES = {
    "layers": "Mean difference from the baseline, by layer. White is no change.",
    "against_random": "Each emotion's strongest condition, with the 95% interval of its change over prompts, which does not know that it was chosen; "
    "and random directions of the same norm at the same layer.",
    "price": "What an effect costs: to the right, more broken text.",
}


def verdict(found: Finding) -> str:
    """One sentence about an emotion's strongest condition."""
    if found.difference == 0:
        return f"{found.emotion}: no condition changed {found.metric} (n = {found.n})."
    change = f"{found.metric} from {found.baseline:.2f} to {found.patched:.2f} ({found.difference:+.2f}, n = {found.n})"
    where = f"layer {found.layer}, " + (f"alpha {found.alpha:g}" if found.head is None else f"head {found.head}")
    where += f", window {found.window}" if found.window else ""
    if found.chosen:
        text = f"{found.emotion}: no scorer has a label for it; of all labels, {change} at {where} moved most, of {found.candidates}"
    elif abs(found.difference) < SMALLEST_EFFECT:
        text = f"{found.emotion}: no effect of {SMALLEST_EFFECT:g} or more; the largest is {change} at {where}, of {found.candidates}"
    else:
        text = f"{found.emotion}: {'raised' if found.difference > 0 else 'lowered'} {change} at {where}, the best of {found.candidates}"
    if found.randoms:
        controls = "random directions there" if found.head is None else "control heads"
        text += f"; {controls} {min(found.randoms):+.2f} to {max(found.randoms):+.2f}"
    if not isnan(found.p):
        controls = "that search as it did" if found.head is None else "control heads"
        text += f"; p = {found.p:.2g} among {found.searched} {controls}"
    price = f"; broken text {found.price}{', which breaks it' if found.breaks_text else ''}" if found.price else ""
    return f"{text}{price}."


def verdicts(result: SweepResult, found: Sequence[Finding]) -> list[str]:
    """A sentence per emotion: what its direction did at its strongest condition; then what asking for it did."""
    return [*map(verdict, found), *asking_lines(result)]


def note(result: SweepResult, found: Sequence[Finding]) -> str:
    """The run's description: a line per emotion, since a page shows few before *Show more*; then the sentences."""
    return bullet_lists(map(brief, found), verdicts(result, found))


def brief(found: Finding) -> str:
    """An emotion's strongest condition in one short line."""
    if found.chosen:
        return f"{found.emotion}: no scorer has a label for it"
    where = f"alpha {found.alpha:g}" if found.head is None else f"head {found.head}"
    p = f" (p = {found.p:.2g})" if not isnan(found.p) else ""
    return f"{found.emotion}: {found.difference:+.2f} at layer {found.layer}, {where}{p}{'; broken text ' if found.price else ''}{found.price}"


def asking_lines(result: SweepResult) -> list[str]:
    """A sentence per emotion and way of asking for it: what that does to the emotion's own label, and to the text."""
    lines = []
    for _, rows in result.effects_of(ASKING).groupby("condition_id", sort=False):
        by_metric = {row["metric"]: row for row in rows.to_dict("records")}
        emotion, kind = str(rows["emotion"].iloc[0]), str(rows["kind"].iloc[0])
        if (target := target_metric(emotion, set(by_metric))) is None:
            continue
        own, broken = by_metric[target], by_metric.get(BROKEN)
        change = f"{own['mean_baseline']:.2f} to {own['mean_patched']:.2f} ({own['mean_diff']:+.2f}, n = {own['n']})"
        known = broken is not None and not isnan(broken["mean_patched"])
        price = f"; broken text {broken['mean_baseline']:.0%} to {broken['mean_patched']:.0%}" if broken is not None and known else ""
        lines.append(f"{emotion}, asked for by {ASKED_BY[kind].format(shots=result.config.shots)}: {target} from {change}{price}.")
    return lines


def summary_lines(result: SweepResult) -> list[str]:
    """One screen for the terminal: per emotion its strongest condition."""
    heads = result.config.kind == "heads"
    setting = "head" if heads else "alpha"
    header = f"{'emotion':<12}{'metric':<26}{'layer':>5}{setting:>7}{'base':>7}{'patched':>9}{'diff':>7}{'random':>8}{'p':>6}{'broken':>14}"
    strongest = findings(result)
    own, strangers = ([found for found in strongest if found.chosen is chosen] for chosen in (False, True))
    lines = [""]
    if own:
        lines += [f"Strongest effect of {'a head of each emotion' if heads else 'each direction'} on its own label", "", header]
        lines += [_summary_line(found) for found in own]
    if strangers:
        names = ", ".join(found.emotion for found in strangers)
        lines += [*([""] if own else []), f"No scorer has a label for {names}; the largest change of any label", "", header]
        lines += [_summary_line(found) for found in strangers]
    if none := [found.emotion for found in own if abs(found.difference) < SMALLEST_EFFECT]:
        lines.append(f"{', '.join(none)}: no effect of {SMALLEST_EFFECT:g} or more")
    failed = int(result.metrics.get("failed_cells", 0))
    if any(found.randoms for found in strongest):
        chance = "the best of as many random heads" if heads else "a random direction that searches as it did"
        lines.append("random: the largest change under its random controls there")
        lines.append(f"p: the chance of as much from {chance}, for one emotion")
    if any(found.breaks_text for found in strongest):
        lines.append(f"!: breaks text: the share of broken text is up by more than {100 * RISE:.0f} points")
    asking = asking_lines(result)
    lines += ["", *asking] if asking else []
    return [*lines, *([f"{failed} cells failed; completions.parquet says why"] if failed else []), ""]


def _summary_line(found: Finding) -> str:
    largest = f"{max(found.randoms, key=abs):+.2f}" if found.randoms else "-"
    p = f"{found.p:.2f}" if not isnan(found.p) else "-"
    broken, mark = found.price or "-", " !" if found.breaks_text else ""
    return (
        f"{found.emotion[:11]:<12}{found.metric[:25]:<26}{found.layer:>5}{found.alpha if found.head is None else found.head:>7g}"
        f"{found.baseline:>7.2f}{found.patched:>9.2f}{found.difference:>+7.2f}{largest:>8}{p:>6}{broken:>14}{mark}"
    )


def example_table(result: SweepResult, found: Sequence[Finding]) -> pd.DataFrame:
    """Baseline beside patched texts of every emotion's strongest condition, most changed first."""
    baseline = result.conditions.loc[result.conditions["kind"] == "baseline", "condition_id"].iloc[0]
    parts = []
    for item in found:
        ids = {"baseline": baseline, "patched": item.condition_id}
        sides = {}
        for side, condition_id in ids.items():
            own = pc.field("condition_id") == condition_id
            texts, scored = rows_of(result.scan("completions"), own), result.scan("scores")
            columns = [*KEYS, *([item.metric] if item.metric in scored.schema.names else [])]
            scores = rows_of(scored, own, columns)
            sides[side] = texts.merge(scores, on=KEYS).set_index(["prompt_id", "sample"])[
                ["completion", "nll", *([item.metric] if item.metric in scores else [])]
            ]
        both = sides["baseline"].join(sides["patched"], lsuffix=" baseline", rsuffix=" patched").dropna().reset_index()
        both = both.merge(result.prompts[["prompt_id", "text"]], on="prompt_id")
        table = pd.DataFrame(
            {
                "emotion": item.emotion,
                "prompt": both["text"],
                "baseline": both["completion baseline"],
                "patched": both["completion patched"],
                "metric": item.metric,
                "score baseline": both[f"{item.metric} baseline"].astype(float),
                "score patched": both[f"{item.metric} patched"].astype(float),
                "layer": item.layer,
                **({"alpha": item.alpha} if item.head is None else {"head": item.head}),
            }
        )
        change = (table["score patched"] - table["score baseline"]).abs()
        parts.append(table.iloc[change.argsort(kind="stable")[::-1]].head(EXAMPLES_PER_EMOTION))
    return pd.concat(parts, ignore_index=True)


@styled("en")
def write_report(result: SweepResult, folder: Path) -> None:
    """Writes figures/*.png, examples.json (MLflow's table format), examples.html, report.md, and report.html with the figures in it.

    MLflow's viewer shows no picture that a Markdown file refers to.
    """
    found = findings(result)
    figures = {"layers": heat_maps(result), "against_random": against_random(found)}
    if any(item.price and not item.chosen for item in found):  # its points are effects on own labels
        figures["price"] = effect_against_price(result, found)
    for name, figure in figures.items():
        save(figure, folder / "figures" / f"{name}.png")
    examples = example_table(result, found)
    write_examples(examples, folder)
    blocks = _blocks(result, found, examples, list(figures))
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(to_html(blocks, folder, "en"), encoding="utf-8")


def write_examples(examples: pd.DataFrame, folder: Path) -> None:
    """Writes the table as MLflow's viewer reads it, which cuts texts off, and as a page that shows them whole."""
    text = examples.to_json(orient="split", index=False, force_ascii=False)
    (folder / "examples.json").write_text(text, encoding="utf-8")
    texts = Table(("emotion", "prompt", "baseline", "patched", "score"), [_example(row) for row in examples.to_dict("records")])
    blocks: list[Block] = [Heading("Texts that changed most, at each emotion's strongest condition", 1), texts]
    (folder / "examples.html").write_text(to_html(blocks, folder, "en"), encoding="utf-8")


def _example(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return row["emotion"], row["prompt"], row["baseline"], row["patched"], f"{row['score baseline']:.2f} to {row['score patched']:.2f}"


def _blocks(result: SweepResult, found: Sequence[Finding], examples: pd.DataFrame, figures: Sequence[str]) -> list[Block]:
    shown = examples.groupby("emotion", sort=False).head(IN_REPORT).to_dict("records")
    texts = [_example(row) for row in shown]
    versions = ", ".join(f"{name} {version}" for name, version in result.facts["versions"].items())
    return [
        Heading(f"Sweep of {short_name(result.config.model)}", 1),
        Bullets(verdicts(result, found)),
        Paragraph(
            "Each is the condition with the largest change of that emotion's own label, of all layers and strengths that were tried, "
            "so its size is too large. p is the share of random directions, searched over the same conditions, that do as much, "
            "itself counted, and is of one emotion alone; a comparison run (emo-mlflow compare) tests all together."
        ),
        *agreement_paragraphs(result.facts, {item.metric for item in found}),
        Heading("Figures"),
        *(Picture(f"figures/{name}.png", FIGURES[name]) for name in figures),
        *([] if any(item.price for item in found) else [Paragraph("Without likelihoods (likelihoods=none), what an effect costs is not known.")]),
        Heading("Texts"),
        Table(("emotion", "prompt", "baseline", "patched", "score"), texts),
        Paragraph("More in examples.html; all in completions.parquet."),
        Heading("Settings"),
        Table(("setting", "value"), list(_settings(result).items())),
        Paragraph(f"Versions: {versions}. config.json holds every setting."),
    ]


def _settings(result: SweepResult) -> dict[str, str]:
    config = result.config
    return {
        "prompts": f"{len(result.prompts)} ({result.facts['prompt_source']}; {result.facts['prompt_split']})",
        "conditions": f"{len(result.conditions)}, cells {result.facts['n_cells']}",
        "layers": config.bands or ", ".join(map(str, config.layers)),
        "alphas": ", ".join(f"{alpha:g}" for alpha in config.alphas)
        + f" ({config.alpha_unit}, {config.alpha_schedule})",
        "scope": config.scope
        + (f", window {', '.join(map(str, config.patch_window))}" if config.scope == "window" else ""),
        "site and operation": f"{config.site}, {config.operation}",
        "new tokens": f"{config.sequence_length} (at least {config.min_new_tokens}), temperature {config.temperature:g}",
        "random controls": f"{config.num_random} per condition",
        "scorers": ", ".join(config.scorers),
        "seconds": f"{result.metrics['seconds.generation']:.0f} generating, {result.metrics['seconds.scoring']:.0f} scoring",
        "device": f"{result.facts['device']}, {config.dtype}",
        "model fingerprint": str(result.facts["model_fingerprint"]),
    }
