"""A study's report: one sentence per emotion first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

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
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import BASELINE, INK, MUTED, PATCHED, new_figure, save
from emo_mlflow.studying.finished import StudyResult, largest_changes
from emo_mlflow.studying.verdicts import Answer, own_claim

EXAMPLES = 3
CONTROLS = {
    "isotropic": "random, any direction",
    "covariance": "random, as the stream varies from token to token",
    "shuffled": "fitted to shuffled labels",
}
MEANING = {
    "specific": "By the exact test, its own label does better than under random directions of every kind, corrected over the emotions; the sentence "
    "says whether it is shown to rise against the baseline as well.",
    "steers": "Its own label rises against the baseline (corrected over the emotions). It is not shown that random directions do less.",
    "not shown": "Neither a rise of its own label nor an advantage over random directions is shown.",
    "untested": "The emotions are tested in a fixed order, and one before it was not shown.",
}


def sentence(result: StudyResult, answer: Answer) -> str:
    """The answer for one emotion, in the words that its tests support."""
    n, effect = answer.effect.n, answer.effect
    interval = f"95% interval {effect.low:+.2f} to {effect.high:+.2f}" if np.isfinite(effect.low) else f"no interval: {effect.reason}"
    change = f"{answer.metric} from {answer.baseline:.2f} to {answer.patched:.2f}, {effect.mean:+.2f} ({interval}, {n} prompts)"
    against = f"p = {answer.p:.3f} against {answer.draws} random directions" if answer.draws else "not tested against random directions"
    beyond = f"{change}; {against} of each kind."
    words = {
        "specific": f"steers, and specifically so: {beyond}"
        if answer.rises
        else f"does more than random directions of any kind: {beyond} A rise against the baseline is not shown.",
        "steers": f"steers, not shown to be specific: {change}; {against}.",
        "not shown": f"not shown to steer: {change}; {against}.",
        "untested": f"not tested against random directions, because an emotion before it was not shown: {change}.",
    }
    void = result.void(answer.emotion)
    left_out = f" Left out, because their texts are broken: {', '.join(void)}." if void else ""
    return f"{answer.emotion}: {words[answer.verdict]}{left_out}"


def price(answer: Answer) -> str:
    """What it costs, in one sentence."""
    share, low, high = answer.harmed.share, answer.harmed.low, answer.harmed.high
    return (
        f"Broken texts: {answer.broken:.0%}, without the direction {answer.broken_baseline:.0%}. "
        f"The label fell on {share:.0%} of the prompts (95% interval {low:.0%} to {high:.0%}).{_elsewhere(answer)}"
    )


def _elsewhere(answer: Answer) -> str:
    """The same on the second set of prompts."""
    effect = answer.second
    if effect is None or not np.isfinite(effect.low):
        return ""
    return f" On {effect.n} prompts of another kind (questions, dialogue): {effect.mean:+.2f} ({effect.low:+.2f} to {effect.high:+.2f})."


def study_lines(result: StudyResult) -> list[str]:
    """One screen for the terminal."""
    lines = ["", f"{'emotion':<12}{'verdict':<11}{'own label':<24}{'change':>7}{'95% interval':>17}{'p':>7}{'draws':>7}{'broken':>8}{'fell':>6}"]
    for a in result.answers:
        interval = f"{a.effect.low:+.2f} to {a.effect.high:+.2f}" if np.isfinite(a.effect.low) else "-"
        p = f"{a.p:.3f}" if a.draws else "-"
        lines.append(
            f"{a.emotion[:11]:<12}{a.verdict:<11}{a.metric[:23]:<24}{a.effect.mean:>+7.2f}{interval:>17}{p:>7}{a.draws:>7}{a.broken:>8.0%}{a.harmed.share:>6.0%}"
        )
    return [*lines, "", *(sentence(result, a) for a in result.answers), ""]


def note(result: StudyResult) -> str:
    """The run's description: a line per emotion, since a page shows few before *Show more*; then the answer and its price in sentences."""
    return bullet_lists(map(brief, result.answers), (f"{sentence(result, a)} {price(a)}" for a in result.answers))


def brief(answer: Answer) -> str:
    """An emotion's answer in one short line."""
    p = f", p = {answer.p:.2g}" if np.isfinite(answer.p) else ""
    return f"{answer.emotion}: {words_for_table(answer)}{p}; broken text {answer.broken:.0%}"


def words_for_table(answer: Answer) -> str:
    """The verdict and the size of the effect."""
    doubt = "" if answer.rises or answer.verdict != "specific" else ", no rise shown"
    return f"{answer.verdict}{doubt}, {answer.effect.mean:+.2f}"


@styled("en")
def write_study_report(result: StudyResult, folder: Path) -> None:
    """Writes figures/against_draws.png, figures/by_prompt.png, report.md and report.html."""
    save(against_draws(result), folder / "figures" / "against_draws.png")
    save(by_prompt(result), folder / "figures" / "by_prompt.png")
    blocks = list(_blocks(result))
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(to_html(blocks, folder, "en"), encoding="utf-8")


def against_draws(result: StudyResult) -> Figure:
    """Each emotion's effect with its interval, above the effects of the random directions that it met, by kind."""
    kinds = list(result.design.controls)
    figure = new_figure(7.2, 0.9 + 0.32 * len(result.answers) * (1 + len(kinds)))
    axes = figure.subplots()
    labels, y = [], 0.0
    for answer in result.answers:
        effect = answer.effect
        if np.isfinite(effect.low):
            axes.plot([effect.low, effect.high], [y, y], color=PATCHED, lw=2, solid_capstyle="butt")
        axes.plot([effect.mean], [y], marker="D", color=PATCHED, ms=6, ls="none")
        labels.append(f"{answer.emotion}: {answer.metric}")
        for kind in kinds:
            y -= 1
            values = result.draws.get((answer.emotion, kind), np.empty(0))
            axes.plot(values, np.full(len(values), y), marker="|", color=INK, ms=9, ls="none", alpha=0.7)
            labels.append(f"{kind} ({len(values)})")
        y -= 1.6
    ticks = _ticks(len(result.answers), len(kinds))
    axes.set_yticks(ticks, labels)
    for place, tick in enumerate(axes.get_yticklabels()):
        tick.set_color(MUTED if place % (1 + len(kinds)) else INK)  # not bold: fonts for Japanese have one weight, and matplotlib warns
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_xlabel("mean change of the own label from the baseline")
    axes.set_title("Each direction, and the random ones that it met")
    handles = [
        axes.plot([], [], marker="D", color=PATCHED, ms=6, lw=2, label="direction, 95% interval")[0],
        axes.plot([], [], marker="|", color=INK, ms=9, ls="none", alpha=0.7, label="a random direction (how many)")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _ticks(n_answers: int, n_kinds: int) -> list[float]:
    found, y = [], 0.0
    for _ in range(n_answers):
        found += [y - step for step in range(n_kinds + 1)]
        y -= n_kinds + 1.6
    return found


def by_prompt(result: StudyResult) -> Figure:
    """Every prompt's change, sorted: how many rise, how many fall."""
    figure = new_figure(7.2, 2.4)
    panels = figure.subplots(1, len(result.answers), sharey=True, squeeze=False)[0]
    for axes, answer in zip(panels, result.answers, strict=True):
        values = np.sort(result.changes[answer.emotion])
        axes.bar(np.arange(len(values)), values, width=0.85, color=[BASELINE if v < 0 else PATCHED for v in values])
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.set_title(answer.emotion)
        axes.set_xlabel("prompts, sorted")
        axes.set_xticks([])
    panels[0].set_ylabel("change of the own label")
    return figure


def _blocks(result: StudyResult) -> Iterator[Block]:
    design = result.design
    yield Heading(f"Study of {result.model}", 1)
    yield Bullets([f"{sentence(result, answer)} {price(answer)}" for answer in result.answers])
    yield Picture("figures/against_draws.png", "Each direction's effect, and those of the random directions that it met, by kind.")
    yield from agreement_paragraphs(result.facts, {answer.metric for answer in result.answers})
    yield Heading("What the words mean")
    yield Table(("verdict", "what is claimed"), [(name, text) for name, text in MEANING.items()])
    yield Heading("Against each kind of control")
    yield Paragraph(
        "A direction is called specific only if it beats every kind that is not void. p is 1 / r if the r-th random direction reached it, and "
        "1 / (R + 1) after R without one. The last rows compare with the other emotions' directions on the same label."
    )
    yield Table(("emotion", "control", "draws", "p", "their changes", "broken", ""), _rungs(result))
    yield Paragraph(" ".join(_own(result)))
    yield Heading("Prompt by prompt")
    yield Picture("figures/by_prompt.png", "Each bar is one prompt.")
    if len(result.examples):
        yield Heading("Texts")
        yield Table(("emotion", "prompt", "without", "with", "change"), _texts(result))
    yield Heading("Damage")
    yield Table(("emotion", *DAMAGE), _damage(result))
    yield Heading("Other labels that moved")
    yield Bullets(list(_others(result)))
    yield Heading("The design, fixed before the first steered text")
    yield Table(("", ""), list(_design(result).items()))
    yield Bullets(list(result.plan))
    yield Paragraph(f"design.json holds all of it; its id is {design.design_id}.")


DAMAGE = {
    "KL, nats per token": "kl",
    "perplexity, times": "perplexity_ratio",
    "same likeliest token": "same_top",
    "right answers without": "accuracy_clean",
    "with": "accuracy_patched",
    "log-probability of the right answer": "log_probability_change",
    "p (loss below margin)": "p_noninferior",
}


def _damage(result: StudyResult) -> list[tuple[str, ...]]:
    rows = result.damage.to_dict("records")
    return [(str(row["emotion"]), *(_number(row.get(name, np.nan)) for name in DAMAGE.values())) for row in rows]


def _rungs(result: StudyResult) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row in result.verdicts.to_dict("records"):
        span = f"{row['draw_low']:+.2f} to {row['draw_high']:+.2f}" if row["draws"] > 1 else _signed(row["draw_low"])
        kind = CONTROLS.get(row["control"])
        rows.append(
            (
                row["emotion"],
                f"{row['control']} ({kind})" if kind else row["control"],
                str(row["draws"]) if row["draws"] else "-",
                _p(row["p"]) if row["draws"] or not kind else "-",
                span,
                f"{row['broken']:.0%}" if np.isfinite(row["broken"]) else "-",
                "void: broken text" if row["void"] else "",
            )
        )
    return rows


def _own(result: StudyResult) -> Iterator[str]:
    for answer in result.answers:
        if len(result.answers) > 1:
            more = "raises" if own_claim(result.verdicts, answer.emotion) else "is not shown to raise"
            yield f"The direction of {answer.emotion} {more} {answer.metric} more than the other emotions' directions do."


def _texts(result: StudyResult) -> list[tuple[str, ...]]:
    shown = result.examples.groupby("emotion", sort=False).head(EXAMPLES).to_dict("records")
    return [(r["emotion"], r["prompt"], r["baseline"], r["patched"], f"{r['change']:+.2f}") for r in shown]


def _signed(value: float) -> str:
    return f"{value:+.2f}" if np.isfinite(value) else "-"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"


def _others(result: StudyResult) -> Iterator[str]:
    for answer in result.answers:
        rows = largest_changes(result.others, answer.emotion)
        moved = ", ".join(f"{row['metric']} {row['mean_diff']:+.2f}" for row in rows.to_dict("records"))
        yield f"{answer.emotion}: {moved or 'none that is significant after correction (Benjamini-Hochberg)'}."


def _design(result: StudyResult) -> dict[str, str]:
    design = result.design
    procedure = {
        "sequence": "in this order, each at 0.05, until one is not shown (fixed sequence)",
        "holm": "all, corrected by Holm",
    }[design.procedure]
    return {
        "emotions": f"{', '.join(design.emotions)}: {procedure}",
        **{
            f"place of {place.emotion}": f"layer {', '.join(map(str, place.layers))} ({place.chosen}; held-out accuracy {place.accuracy:.2f}), "
            f"alpha {place.alpha:g} {place.alpha_unit}"
            for place in design.places
        },
        "controls": f"{', '.join(design.controls)}; at most {design.limit} random directions of each",
        "prompts": f"{len(design.prompts)}, and {len(design.second)} of another kind",
        "text": f"{design.sequence_length} new tokens, temperature {design.temperature:g}, scope {design.scope}",
        "seed": str(design.seed),
    }
