"""The built-in prompts, and a user's own: which texts directions are fitted on, and which are continued."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emo_mlflow.common.names import same_name
from emo_mlflow.errors import UserError
from emo_mlflow.prompts.columns import PLAIN, Layout
from emo_mlflow.prompts.conversations import check_texts
from emo_mlflow.prompts.files import DatasetRow, builtin_rows, read_rows
from emo_mlflow.prompts.pairs import prompts_of, read_pairs
from emo_mlflow.prompts.repeats import RULE, alike, exclaimed, normalised
from emo_mlflow.types import Prompt, digest

REFERENCE = "neutral"
EVERY = 10**9  # test prompts: all that there are


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a sweep.

    Attributes:
        fit: what directions are fitted on: the chosen emotions and the reference.
        test: what is continued: the reference's test prompts, or all test prompts where there is no reference.
        emotions: in the data set's order, without the reference.
        reference: `neutral`, or None: each emotion is then compared with all others together.
        source: `builtin` or the file's name.
        split: how texts came to be for fitting or for testing.
        n_duplicates: texts that were dropped, because they repeat another or stand under several emotions.
        spellings: how the data set writes the reference's name.
        groups: where directions are fitted on pairs: of each text to fit on, texts of one group are held out together (`pairs.prompts_of`).
    """

    fit: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    emotions: tuple[str, ...]
    reference: str | None
    source: str
    split: str
    n_duplicates: int
    spellings: tuple[str, ...] = (REFERENCE,)
    groups: tuple[int, ...] = ()

    @property
    def compared_with(self) -> str:
        """What directions are measured against, for the terminal."""
        if self.groups:
            return f"the other side of each pair, {len(self.fit) // 2} pairs"
        if self.reference is None:
            return f"NONE: each emotion is compared with all others together, for no text of {self.source} has the emotion {REFERENCE!r}"
        n_fit = sum(prompt.emotion == self.reference for prompt in self.fit)
        named = "" if self.spellings == (REFERENCE,) else f" (written {', '.join(self.spellings)})"
        return f"{self.reference}{named}, {n_fit} texts"


def fit_hash(prompts: Iterable[Prompt]) -> str:
    """Identifies the texts that directions were fitted on, in whatever order."""
    return digest(sorted([prompt.emotion, prompt.text, *map(list, prompt.before or ())] for prompt in prompts))


def load_prompts(
    dataset: str = "builtin",
    *,
    emotions: Sequence[str] | None = None,
    max_samples: int,
    seed: int = 0,
    layout: Layout = PLAIN,
    pairs: str = "",
    personas: str = "",
) -> PromptSet:
    """The built-in prompts, or those of a JSONL, CSV, TSV or parquet file with the columns text (or messages), emotion and optionally role.

    Texts of an emotion that are the same (`repeats.normalised`) count once: a repeated prompt is no further evidence. One that is
    there both to fit and to test stays for fitting, so that nothing is tested on what was fitted. One that stands under several
    emotions is left out: it tells nothing of their difference, and would pull both means the same way. A warning says how many
    were dropped. Without roles, half of every emotion's texts is fitted on and half is tested on; a conversation has its role from its last
    turn, and is not continued where one to fit on begins with it.

    Names of emotions that differ in case alone are one, in the spelling that comes first; `Neutral` is the reference. Where there is no
    reference, a warning says so.

    Args:
        dataset: `builtin`, or a file's path.
        emotions: the emotions to keep, in whatever case; None for all.
        max_samples: test prompts at most, drawn by `seed`; a larger number only adds to them.
        layout: of a file whose columns are called otherwise, or that is in another encoding.
        pairs: a file of contrastive pairs to fit on (`pairs.read_pairs`), in place of the data set's texts; `emotions` are then the pairs'.
        personas: of a file of endings.

    Raises:
        UserError: if a file cannot be read, lacks something, or does not have what is asked for.
    """
    if pairs:
        return _on_pairs(load_prompts(dataset, max_samples=EVERY, seed=seed, layout=layout), Path(pairs), personas, emotions, max_samples, layout)
    if personas:
        raise UserError(f"personas={personas!r} needs pairs=: they stand in front of its endings")
    if max_samples < 1:
        raise UserError(f"max_samples={max_samples} leaves nothing to continue: give at least 1")
    rows, source = (builtin_rows(), "builtin") if dataset == "builtin" else (read_rows(Path(dataset), layout), Path(dataset).name)
    spellings = tuple(dict.fromkeys(row.emotion for row in rows if same_name(row.emotion) == REFERENCE))
    rows = _one_spelling(rows, source)
    prompts, split = _with_roles(distinct := _distinct(rows, source), seed, source)
    names = tuple(dict.fromkeys(prompt.emotion for prompt in prompts))
    reference = REFERENCE if REFERENCE in names else None
    chosen = _chosen(names, emotions, source)
    if reference is None:
        warnings.warn(
            f"{source} has no texts of the emotion {REFERENCE!r}: each emotion is compared with all others together, so its direction "
            "depends on which others there are",
            stacklevel=2,
        )
    fit = tuple(
        p for p in prompts if p.role == "fit" and (p.emotion in chosen or p.emotion == reference or reference is None)
    )
    _check_fit(fit, (*chosen, *([reference] if reference else [])), source)
    test = _unseen([p for p in prompts if p.role == "test" and p.emotion == (reference or p.emotion)], fit, source)
    if not test:
        advice = "give some the role test, or leave the roles out"
        if any(prompt.before is not None for prompt in prompts):
            advice = "give conversations that end with a user's turn, and with which none to fit on begins"
        raise UserError(f"{source} has no {reference or ''} texts to test on: {advice}")
    random.Random(f"test prompts {seed}").shuffle(test)
    return PromptSet(fit, tuple(test[:max_samples]), chosen, reference, source, split, len(rows) - len(distinct), spellings)


def _on_pairs(
    prompts: PromptSet, file: Path, personas: str, emotions: Sequence[str] | None, max_samples: int, layout: Layout
) -> PromptSet:
    """The same prompts to continue, but for those that are among the pairs, and directions fitted on the pairs."""
    fit, names, groups = prompts_of(read_pairs(file, personas, layout), emotions, file.name)
    fitted = {normalised(prompt.text) for prompt in fit}
    test = [prompt for prompt in prompts.test if normalised(prompt.text) not in fitted][:max_samples]
    if not test:
        raise UserError(f"{prompts.source} has no texts to test on that are not among the pairs of {file.name}: give others with dataset=")
    split = f"pairs of {file.name} to fit on; {prompts.split} to test on"
    return replace(prompts, fit=tuple(fit), test=tuple(test), emotions=names, reference=None, split=split, groups=groups)


def emotions_to_continue(prompts: PromptSet, max_samples: int, seed: int) -> PromptSet:
    """The same emotions, with half of each one's texts to continue instead of the reference's, at most `max_samples` of each.

    Raises:
        UserError: if that leaves an emotion fewer than two texts to fit on.
    """
    check_texts(prompts.fit, "this operation continues texts of each emotion: those that are fitted on end with the assistant's turn; give texts")
    kept, test = list(prompts.fit), []
    for emotion in prompts.emotions:
        own = [prompt for prompt in prompts.fit if prompt.emotion == emotion]
        random.Random(f"continued {seed} {emotion}").shuffle(own)
        held_back = own[-(-len(own) // 2) :]
        kept = [prompt for prompt in kept if prompt not in held_back]
        test += [replace(prompt, role="test") for prompt in held_back[:max_samples]]
    _check_fit(kept, prompts.emotions, prompts.source)
    split = f"{prompts.split}; half of every emotion's texts to fit on are continued (seed {seed})"
    return replace(prompts, fit=tuple(kept), test=tuple(test), split=split)


def _one_spelling(rows: Sequence[DatasetRow], source: str) -> list[DatasetRow]:
    """Rows whose emotions differ in more than case: an emotion is called as where it comes first, and the reference by its name."""
    spellings: dict[str, list[str]] = {}
    for row in rows:
        spellings.setdefault(same_name(row.emotion), []).append(row.emotion)
    several = [tuple(dict.fromkeys(names)) for key, names in spellings.items() if key != REFERENCE and len(set(names)) > 1]
    if several:
        merged = "; ".join(f"{', '.join(names)} are one emotion, {names[0]}" for names in several)
        warnings.warn(f"{source}: names of emotions are compared without case: {merged}", stacklevel=3)
    called = {key: REFERENCE if key == REFERENCE else names[0] for key, names in spellings.items()}
    return [row._replace(emotion=called[same_name(row.emotion)]) for row in rows]


def _distinct(rows: Sequence[DatasetRow], source: str) -> list[DatasetRow]:
    emotions: dict[str, set[str]] = {}
    for row in rows:
        emotions.setdefault(alike(row.text, row.before, exclaimed), set()).add(row.emotion)
    of_one = [row for row in rows if len(emotions[alike(row.text, row.before, exclaimed)]) == 1]
    same: dict[tuple[str, str], list[DatasetRow]] = {}
    for row in of_one:
        same.setdefault((row.emotion, alike(row.text, row.before)), []).append(row)
    if dropped := len(rows) - len(same):
        several = len(rows) - len(of_one)
        warnings.warn(
            f"{source}: {dropped} of {len(rows)} texts were dropped: {dropped - several} repeat others, "
            f"{several} stand under several emotions; {RULE}",
            stacklevel=3,
        )
    return [min(group, key=lambda row: row.role == "test") for group in same.values()]


def _unseen(test: Sequence[Prompt], fit: Sequence[Prompt], source: str) -> list[Prompt]:
    """The prompts but for conversations with which one to fit on begins."""
    seen = {alike(prompt.before[i][1], prompt.before[:i]) for prompt in fit if prompt.before for i in range(len(prompt.before))}
    kept = [prompt for prompt in test if alike(prompt.text, prompt.before) not in seen]
    if dropped := len(test) - len(kept):
        warnings.warn(f"{source}: {dropped} of {len(test)} prompts are not continued: conversations to fit on begin with them", stacklevel=3)
    return kept


def _with_roles(rows: Sequence[DatasetRow], seed: int, source: str) -> tuple[list[Prompt], str]:
    if all(row.role is not None for row in rows):
        prompts = [Prompt(row.text, row.emotion, row.role, row.before) for row in rows if row.role]
        if any(row.before is not None for row in rows):
            return prompts, f"{source}: conversations that end with the assistant's turn to fit on, those that end with a user's to test on"
        return prompts, "built-in roles" if source == "builtin" else f"roles of {source}"
    if any(row.before is not None for row in rows):
        raise UserError(f"{source} has texts without a role beside conversations, whose last turns say theirs: give the texts fit or test")
    if any(row.role is not None for row in rows):
        raise UserError(f"{source} gives a role to some texts only: give fit or test to all of them, or to none")
    by_emotion: dict[str, list[str]] = {}
    for row in rows:
        by_emotion.setdefault(row.emotion, []).append(row.text)
    prompts = []
    for emotion, texts in by_emotion.items():
        order = texts[:]
        random.Random(f"split {seed} {emotion}").shuffle(order)
        fitted = set(order[: -(-len(order) // 2)])
        prompts += [Prompt(text, emotion, "fit" if text in fitted else "test") for text in texts]
    return prompts, f"every emotion's texts split in half (seed {seed})"


def _chosen(names: Sequence[str], emotions: Sequence[str] | None, source: str) -> tuple[str, ...]:
    there = tuple(name for name in names if name != REFERENCE)
    if len(names) < 2:
        raise UserError(
            f"{source} has one emotion only ({', '.join(names) or 'no text under one'}): "
            f"a direction needs texts to differ from, such as {REFERENCE} ones"
        )
    called = {same_name(name): name for name in there}
    for name in emotions or ():
        if same_name(name) == REFERENCE:
            raise UserError(
                f"emotions: {REFERENCE} is what directions are measured against; choose among {', '.join(there)}"
            )
        if same_name(name) not in called:
            raise UserError(f"emotions: {source} has no {name!r}; choose among {', '.join(there)}")
    return tuple(dict.fromkeys(called[same_name(name)] for name in emotions)) if emotions else there


def _check_fit(fit: Sequence[Prompt], needed: Sequence[str], source: str) -> None:
    counts = Counter(prompt.emotion for prompt in fit)
    for name in needed:
        if counts[name] < 2:
            raise UserError(
                f"{source} has {counts[name]} text(s) of {name!r} to fit a direction on: at least 2 are needed"
            )
