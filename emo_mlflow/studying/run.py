"""A study from its plan to its result: the tests, then what else is worth knowing of the directions that were tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from emo_mlflow.models.chat import end_tokens
from emo_mlflow.models.tokens import text_decoder
from emo_mlflow.scoring.broken import LIMIT, breaks_text
from emo_mlflow.settings.templates import form_of
from emo_mlflow.statistics.corrections import corrected
from emo_mlflow.statistics.margins import harmed, mean_interval
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.statistics.paired import paired_effects
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.studying.bank import TextBank
from emo_mlflow.studying.damage import damage_table
from emo_mlflow.studying.finished import StudyResult
from emo_mlflow.studying.plan import StudyPlan
from emo_mlflow.studying.procedure import Tests, run_tests
from emo_mlflow.studying.protocol import BASELINE, Arm
from emo_mlflow.studying.verdicts import HARM, Answer, answers, draw_changes, own_changes, rung_table
from emo_mlflow.sweeping.grid import noise_seed
from emo_mlflow.types import FEW_DRAWS, Cell, Completion, Say

EXAMPLES = 8
Keep = Callable[[Sequence[Completion]], None]
Progress = Callable[[int, int], None]
WriteRows = Callable[[Sequence[Row]], Iterator[Sequence[Completion]]]


def decoding_of(plan: StudyPlan) -> Decoding:
    """How its texts are written: all of one length."""
    design = plan.design
    ends, absent = end_tokens(plan.loaded, form_of(plan.inputs.settings)), plan.loaded.absent_ids
    return Decoding(design.sequence_length, design.sequence_length, design.temperature, ends, absent)


def engine_of(plan: StudyPlan) -> Engine:
    """The engine of this process, set up for the study."""
    return Engine(plan.stack, decoding_of(plan), text_decoder(plan.loaded), plan.inputs.settings.batch_size)


def is_void(control: Floats, own: Floats) -> bool:
    """Whether a control's texts are too broken to express anything: most of those that were measured, and clearly more than of the direction's."""
    share = float(np.nanmean(control))
    return share > LIMIT and bool(breaks_text(share - np.nanmean(own)))


class Writer:
    """Cells to completions; of a control only the first draws get likelihoods, which say how broken its texts are.

    Args:
        write: rows to completions, in packs, as they come: the engine of this process, or a cluster's.
    """

    def __init__(self, plan: StudyPlan, keep: Keep, write: WriteRows | None = None) -> None:
        self.plan = plan
        self.keep = keep
        self.write = write or engine_of(plan).generate
        self.arms: dict[str, Arm] = {}

    def register(self, asked: Sequence[Arm]) -> None:
        """Makes what these arms inject."""
        self.plan.arms.prepare(asked)
        self.arms |= {condition.condition_id: arm for arm in asked for condition in self.plan.arms.conditions(arm)}

    def __call__(self, cells: Sequence[Cell]) -> Iterator[Sequence[Completion]]:
        for pack in self.write([self._row(cell) for cell in cells]):
            self.keep(pack)
            yield pack

    def _row(self, cell: Cell) -> Row:
        arm = self.arms[cell.condition_id]
        noise = noise_seed(self.plan.design.seed, cell.prompt_id, cell.sample)
        patch = None if arm == BASELINE else self.plan.arms.patches[cell.condition_id]
        return Row(cell, self.plan.tokens[cell.prompt_id], patch, noise, with_nll=(arm.draw or 0) < FEW_DRAWS)


class StudyBank(TextBank):
    """A bank that makes an arm's directions before its texts."""

    def __init__(self, plan: StudyPlan, writer: Writer, prompts: Sequence[str], done: Sequence[Completion], on_progress: Progress) -> None:
        self._writer = writer
        super().__init__(
            conditions={},
            labels=plan.inputs.labels,
            prompts=prompts,
            samples=plan.inputs.settings.samples_per_prompt,
            scorers=plan.inputs.scorers,
            write=writer,
            done=done,
            on_progress=on_progress,
        )
        self._arms = plan.arms

    def fill(self, asked: Mapping[Arm, int]) -> None:
        """Makes sure that each arm has continued so many of the first prompts."""
        self._writer.register(list(asked))
        self.conditions = {**self.conditions, **{arm: self._arms.conditions(arm) for arm in asked}}
        super().fill(asked)


def run_study(
    plan: StudyPlan,
    lines: Sequence[str],
    done: Sequence[Completion],
    keep: Keep,
    on_progress: Progress,
    say: Say,
    write: WriteRows | None = None,
) -> tuple[StudyResult, StudyBank]:
    """Does what the design says.

    Args:
        lines: what was said of cost and power.
        done: completions of an earlier, interrupted run of the same study.
        keep: called with every pack's completions as they come.
        write: as in `Writer`.
    """
    writer = Writer(plan, keep, write)
    bank = StudyBank(plan, writer, plan.design.prompts, done, on_progress)
    tests = run_tests(plan.design, bank, is_void, lambda tests: say(_standing(tests)))
    found = answers(plan.design, bank, tests)
    second = StudyBank(plan, writer, plan.design.second, done, on_progress)
    second.fill({arm: len(plan.design.second) for arm in (BASELINE, *map(Arm, plan.design.emotions))})
    found = tuple(_with_second(answer, second) for answer in found)
    result = StudyResult(
        design=plan.design,
        answers=found,
        plan=lines,
        verdicts=rung_table(plan.design, bank, tests, found),
        damage=damage_table(plan),
        others=_others(plan, bank),
        changes={answer.emotion: own_changes(bank, answer.emotion) for answer in found},
        draws=_draws(plan, bank, tests),
        examples=_examples(plan, bank, found),
        conditions=_conditions(plan, [bank, second]),
        completions=_completions([*bank.completions, *second.completions]),
        facts=_facts(plan),
    )
    return result, bank


def _standing(tests: Tests) -> str:
    """Where the tests stand, in one line."""
    parts = [f"{emotion} {step.decision}" + (f" after {step.draws}" if step.draws else "") for emotion, step in tests.steps.items()]
    return "Tests      " + ", ".join(parts)


def _with_second(answer: Answer, bank: TextBank) -> Answer:
    changes = own_changes(bank, answer.emotion)
    return replace(answer, second=mean_interval(changes), second_harmed=harmed(changes, HARM))


def _others(plan: StudyPlan, bank: TextBank) -> pd.DataFrame:
    """A row per emotion and metric that is not its own label."""
    parts = []
    baseline = bank.all_scores(BASELINE)
    for place in plan.design.places:
        table = paired_effects(baseline, bank.all_scores(Arm(place.emotion)), seed=plan.design.seed)
        table = table.assign(emotion=place.emotion, metric=list(bank.scorers.metrics))
        table = table[table["metric"] != place.metric]
        parts.append(table.assign(p_bh=corrected(table["p_permutation"], [place.emotion] * len(table))["p_bh"].to_numpy()))
    columns = ["emotion", "metric", "n", "mean_baseline", "mean_patched", "mean_diff", "p_permutation", "p_bh"]
    return pd.concat(parts, ignore_index=True)[columns]


def _draws(plan: StudyPlan, bank: TextBank, tests: Tests) -> dict[tuple[str, str], Floats]:
    return {
        (emotion, control): draw_changes(plan.design, emotion, control, test.draws, bank)
        for emotion, rungs in tests.rungs.items()
        for control, test in rungs.items()
    }


def _examples(plan: StudyPlan, bank: TextBank, found: Sequence[Answer]) -> pd.DataFrame:
    """Baseline beside steered texts, the most changed first."""
    prompts = {prompt.prompt_id: prompt.text for prompt in plan.inputs.prompts.test}
    rows = []
    base = bank.texts(BASELINE)
    for answer in found:
        changes = own_changes(bank, answer.emotion)
        steered = bank.texts(Arm(answer.emotion))
        for i in np.argsort(-np.abs(np.nan_to_num(changes)), kind="stable")[:EXAMPLES]:
            at = i * bank.samples
            rows.append((answer.emotion, prompts[base[at].cell.prompt_id], base[at].completion, steered[at].completion, float(changes[i])))
    return pd.DataFrame(rows, columns=["emotion", "prompt", "baseline", "patched", "change"])


def _conditions(plan: StudyPlan, banks: Sequence[TextBank]) -> pd.DataFrame:
    """A row per condition that has texts, with the factor of its direction."""
    rows = []
    for arm in dict.fromkeys(arm for bank in banks for arm in bank.arms):
        for item in plan.arms.conditions(arm):
            dose = plan.arms.doses.get(item.condition_id, (item.alpha, None))[0]
            rows.append((item.condition_id, item.kind, item.emotion, item.control, item.draw, item.layer, item.alpha, item.alpha_unit, dose))
    columns = ["condition_id", "kind", "emotion", "control", "draw", "layer", "alpha", "alpha_unit", "dose"]
    return pd.DataFrame(rows, columns=columns).astype({"draw": "Int64", "layer": "Int64", "alpha": float, "dose": float})


def _completions(items: Sequence[Completion]) -> pd.DataFrame:
    """A row per text."""
    rows = [(item.cell.condition_id, item.cell.prompt_id, item.cell.sample, item.completion, item.n_tokens, item.failure) for item in items]
    return pd.DataFrame(rows, columns=["condition_id", "prompt_id", "sample", "completion", "n_tokens", "failure"])


def _facts(plan: StudyPlan) -> dict[str, object]:
    loaded, prompts = plan.loaded, plan.inputs.prompts
    return {
        "model": {"name": loaded.spec.name, "source": loaded.spec.source, "revision": loaded.spec.revision, **loaded.quantised},
        "model_type": loaded.model.config.get_text_config().model_type,
        "model_fingerprint": loaded.fingerprint,
        "n_layers": loaded.n_layers,
        "d_model": loaded.d_model,
        "device": str(plan.stack.device),
        "scorer_fingerprints": dict(plan.inputs.scorers.fingerprints),
        "agreement": plan.inputs.scorers.agreement,
        "reference": prompts.reference,
        "prompt_source": prompts.source,
        "prompt_split": prompts.split,
    }
