"""Texts of a sweep drawn for readers, as a sheet that does not say how they were made, and the sheet with their answers read back."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emo_mlflow.common.csv_files import without_formulas
from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.scoring.questions import Question
from emo_mlflow.sweeping.schemas import KEYS
from emo_mlflow.types import digest

SHEET, ID, PROMPT, CONTINUATION = "sheet", "id", "prompt", "continuation"
BASELINE = "baseline"
_SHOWN = 3  # rows that an error names


@dataclass(frozen=True)
class Draw:
    """Which texts of a run a sheet holds: equal draws are equal sheets, on every machine."""

    run_id: str
    n: int
    seed: int

    @property
    def name(self) -> str:
        """As the sheet's first column has it."""
        return f"{self.run_id}.{self.n}.{self.seed}"


def draw_of(name: str, where: str) -> Draw:
    """The draw that a sheet names.

    Raises:
        UserError: if it is no draw's name.
    """
    run_id, *numbers = name.split(".")
    if len(numbers) != 2 or not all(number.isdecimal() and len(number) < 10 for number in numbers):
        raise UserError(f"{where}: the column {SHEET} has {shown(name)}, which no sheet of `emo-mlflow label` has")
    return Draw(run_id, int(numbers[0]), int(numbers[1]))


def all_cells(prompts: pd.DataFrame, conditions: pd.DataFrame, completions: pd.DataFrame) -> pd.DataFrame:
    """KEYS, kind, arm, prompt, continuation of every cell that has a text. An arm is the baseline, or one kind of conditions of one emotion.

    Raises:
        UserError: if no cell has one.
    """
    arms = conditions["kind"].where(conditions["kind"] == BASELINE, conditions["kind"] + " " + conditions["emotion"].fillna(""))
    table = completions[completions["failure"].isna()].merge(conditions[["condition_id", "kind"]].assign(arm=arms), on="condition_id")
    table = table.merge(prompts[["prompt_id", "text"]].rename(columns={"text": PROMPT}), on="prompt_id")
    if not len(table):
        raise UserError("no cell of this run has a text: there is nothing to label")
    return table.rename(columns={"completion": CONTINUATION})[[*KEYS, "kind", "arm", PROMPT, CONTINUATION]]


def drawn(cells: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    """The cells that are drawn, at random within each arm: each kind of condition has a like share, and each arm of a kind; and the id of each
    one's row on the sheet. Cells of one prompt with one text share a row.
    """
    keys = cells[[*KEYS]].astype(str).to_numpy().tolist()
    # In the order of their digests: random, and the same in every version of every library.
    order = np.argsort(np.array([digest([draw.run_id, draw.seed, *key]) for key in keys]))
    ranked = cells.iloc[order]
    sizes = _sizes(cells, draw.n)
    place = ranked.groupby("arm").cumcount()
    taken = ranked[place < ranked["arm"].map(sizes)]
    texts = zip(taken["prompt_id"], taken[CONTINUATION], strict=True)
    return taken.assign(**{ID: [digest([draw.run_id, draw.seed, *text], 10) for text in texts]}).reset_index(drop=True)


def _sizes(cells: pd.DataFrame, n: int) -> dict[str, int]:
    """How many cells of each arm are drawn; an arm that has too few leaves its share to the others."""
    room = cells.groupby("arm", sort=False).size().to_dict()
    kind = dict(cells.drop_duplicates("arm")[["arm", "kind"]].itertuples(index=False, name=None))
    weight = {arm: 1 / list(kind.values()).count(kind[arm]) for arm in room}
    sizes = dict.fromkeys(room, 0)
    for _ in range(min(n, len(cells))):
        arm = min((arm for arm in room if sizes[arm] < room[arm]), key=lambda arm: (sizes[arm] + 1) / weight[arm])
        sizes[arm] += 1
    return {str(arm): size for arm, size in sizes.items()}


def make_sheet(cells: pd.DataFrame, draw: Draw, asked: Sequence[Question]) -> pd.DataFrame:
    """The sheet: SHEET, ID, PROMPT, CONTINUATION, and an empty column per question; rows in the order of their ids, which says nothing.

    Raises:
        UserError: for an emotion of the name of one of these columns.
    """
    if taken := [question.name for question in asked if question.name in (SHEET, ID, PROMPT, CONTINUATION)]:
        raise UserError(f"the emotion {taken[0]!r} has the name of a column of the sheet: its texts cannot be labelled under that name")
    rows = cells.drop_duplicates(ID).sort_values(ID)[[ID, PROMPT, CONTINUATION]]
    sheet = rows.assign(**{question.name: "" for question in asked}).reset_index(drop=True)
    sheet.insert(0, SHEET, draw.name)
    return sheet


def open_sheet(path: Path) -> tuple[pd.DataFrame, Draw]:
    """A sheet as texts, and the draw that it is of.

    Raises:
        UserError: if it cannot be read, has no rows, or is no sheet.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        separator = max(",;\t", key=(lines or [""])[0].count)  # spreadsheets of some languages write semicolons
        rows = [row for row in csv.reader(lines, delimiter=separator) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the sheet {path}: {reason_of(error)}") from None
    header, *body = rows or [[]]
    if not {SHEET, ID} <= set(header) or not body or len(set(header)) < len(header):
        raise UserError(f"{path} is no sheet with labels: it needs the columns {SHEET}, {ID} and one per question, and a row per text")
    if bad := next((i for i, row in enumerate(body, 2) if len(row) != len(header)), None):
        raise UserError(f"{path}, row {bad}: has {len(body[bad - 2])} cells, and the header {len(header)}")
    table = pd.DataFrame(body, columns=header, dtype=object)
    if len(names := table[SHEET].unique()) > 1:
        raise UserError(f"{path} mixes rows of {len(names)} sheets: give one at a time")
    return table, draw_of(names[0], str(path))


def read_labels(table: pd.DataFrame, path: Path, sheet: pd.DataFrame, asked: Sequence[Question]) -> pd.DataFrame:
    """One reader's answers: a row per row of the sheet, ID as index, a float column per question that was answered.

    Args:
        table: of `open_sheet`.
        sheet: the same as `make_sheet` gives it.

    Raises:
        UserError: for rows that are missing, twice or of other texts, answers that are missing or out of range, or a sheet without answers.
    """
    _check_rows(table, path, sheet)
    answers = {}
    for question in asked:
        texts = table[question.name].str.strip() if question.name in table else pd.Series("", table.index)
        if (texts == "").all():
            continue
        if (texts == "").any():
            raise UserError(f"{path}: {question.name} has no answer in {_rows(texts[texts == ''])}: fill them in, or leave the whole column empty")
        numbers = pd.to_numeric(texts, errors="coerce")
        wrong = texts[~(numbers.between(question.lowest, question.highest) & (numbers % 1 == 0))]
        if len(wrong):
            span = f"whole numbers from {question.lowest} to {question.highest}"
            raise UserError(f"{path}, {_rows(wrong)}: {question.name} is {shown(wrong.iloc[0])}; answers are {span}")
        answers[question.name] = numbers.astype(float)
    if not answers:
        raise UserError(f"{path} has no answers: fill in at least one of {', '.join(question.name for question in asked)}")
    return pd.DataFrame(answers).set_axis(pd.Index(table[ID], name=ID)).loc[sheet[ID]]


def _check_rows(table: pd.DataFrame, path: Path, sheet: pd.DataFrame) -> None:
    if len(twice := table[table[ID].duplicated()]):
        raise UserError(f"{path}: {_rows(twice[ID])} has the id of a row before it")
    if len(unknown := table[~table[ID].isin(sheet[ID])]):
        raise UserError(f"{path}: the id in {_rows(unknown[ID])} is of no text that was drawn: the sheet is of another run, or ids were changed")
    missing = sheet[~sheet[ID].isin(table[ID])]
    if len(missing):
        ids = ", ".join(missing[ID].iloc[:_SHOWN])
        more = ", ..." if len(missing) > _SHOWN else ""
        raise UserError(f"{path} lacks {len(missing)} of the sheet's {len(sheet)} rows (id {ids}{more}): every drawn text is needed")
    if CONTINUATION in table:
        there = without_formulas(sheet[[ID, CONTINUATION]]).set_index(ID)[CONTINUATION].loc[table[ID]]
        # Spreadsheets change white space and apostrophes at the start, and nothing else.
        same = [_plain(a) == _plain(b) for a, b in zip(there, table[CONTINUATION], strict=True)]
        if not all(same):
            others = _rows(table[ID][~np.array(same)])
            raise UserError(f"{path}: the text of {others} is not the one that was drawn: labels must be of the run's own texts")


def _plain(text: str) -> str:
    return " ".join(text.removeprefix("'").split()).replace("\x00", "")


def _rows(found: pd.Series) -> str:
    numbers = [str(i + 2) for i in found.index[:_SHOWN]]
    return f"row{'s' if len(found) > 1 else ''} {', '.join(numbers)}{' and more' if len(found) > _SHOWN else ''}"
