"""A prompt continued with and without a direction, for a person to read: in a terminal, in a notebook, word by word."""

from __future__ import annotations

import html
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import pandas as pd

from emo_mlflow.common.names import printable
from emo_mlflow.errors import UserError
from emo_mlflow.serving.call_options import AS_RECORDED, Options
from emo_mlflow.serving.steered_model import SteeredModel
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.streaming import stream
from emo_mlflow.types import Condition

BASELINE = Condition("baseline")
NARROW, WIDE = 60, 160  # columns of a terminal: side by side from the first on, and no wider than the second


@dataclass(frozen=True)
class SideBySide:
    """A prompt and what follows it.

    Attributes:
        unsteered: what the model writes by itself.
        steered: what it writes under the condition.
        condition: in a few words.
    """

    prompt: str
    unsteered: str
    steered: str
    condition: str

    def __str__(self) -> str:
        width = min(shutil.get_terminal_size().columns, WIDE)
        texts = [("without", self.unsteered), (f"with {self.condition}", self.steered)]
        columns = [_wrapped(name, text, width if width < NARROW else (width - 3) // 2) for name, text in texts]
        prompt = _wrapped("prompt", self.prompt, width)
        if width < NARROW:
            return "\n".join([*prompt, "", *columns[0], "", *columns[1]])
        size = (width - 3) // 2
        sides = [f"{left:<{size}} | {right}".rstrip() for left, right in zip_longest(*columns, fillvalue="")]
        return "\n".join([*prompt, "", *sides])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        names = ["prompt", "without", f"with {self.condition}"]
        head = "".join(f"<th>{html.escape(printable(name))}</th>" for name in names)
        cells = "".join(f"<td>{_paragraph(text)}</td>" for text in (self.prompt, self.unsteered, self.steered))
        style = "<style>.emo-beside td, .emo-beside th {text-align: left; vertical-align: top; max-width: 30em}</style>"
        return f'{style}<table class="emo-beside"><tr>{head}</tr><tr>{cells}</tr></table>'


def _wrapped(name: str, text: str, width: int) -> list[str]:
    lines = [line for part in printable(text.strip("\n")).split("\n") for line in (textwrap.wrap(part, width) or [""])]
    return [*textwrap.wrap(name, width), "-" * width, *lines]


def _paragraph(text: str) -> str:
    return html.escape(printable(text)).replace("\n", "<br>")


class Steering:
    """A model with one condition in hand, which continues prompts beside the model as it is.

    Every call may set alpha, max_new_tokens, temperature and seed.
    """

    def __init__(self, model: SteeredModel) -> None:
        self.model = model

    @property
    def condition(self) -> Condition:
        """What is injected, where and how strongly."""
        return self.model.settings.condition

    def __repr__(self) -> str:
        name, template = self.model.settings.model.name, self.model.settings.generation.template
        return f"Steering({name}, {_named(self.condition, AS_RECORDED)}, scope {self.condition.scope}, template {template})"

    def __call__(self, prompt: str, **options: float) -> SideBySide:
        """A prompt's two texts.

        Raises:
            UserError: for a prompt that is empty or too long, an option that there is not, or an alpha that breaks the text.
        """
        return next(self._beside([prompt], Options.read(options)))

    def table(self, prompts: Sequence[str], **options: float) -> pd.DataFrame:
        """prompt, unsteered, steered: the two texts of each prompt, written together.

        Raises:
            UserError: as a call.
        """
        found = self._beside(prompts, Options.read(options))
        return pd.DataFrame([(item.prompt, item.unsteered, item.steered) for item in found], columns=["prompt", "unsteered", "steered"])

    def stream(self, prompt: str, **options: float) -> Iterator[SideBySide]:
        """A prompt's two texts so far, after every token.

        Raises:
            UserError: as a call.
        """
        chosen = Options.read(options)
        (clean,), (steered,), engine = self._rows([prompt], chosen)
        with self.model.lock:
            for texts in stream(engine, [clean, steered]):
                yield SideBySide(prompt, texts[clean.cell], texts[steered.cell], _named(self.condition, chosen))

    def _rows(self, prompts: Sequence[str], options: Options) -> tuple[list[Row], list[Row], Engine]:
        rows, engine = self.model.rows(prompts, options)
        steered = [replace(row, with_nll=False) for row in rows]
        clean = [replace(row, cell=replace(row.cell, condition_id=BASELINE.condition_id), patch=None) for row in steered]
        return clean, steered, engine

    def _beside(self, prompts: Sequence[str], options: Options) -> Iterator[SideBySide]:
        clean, steered, engine = self._rows(prompts, options)
        with self.model.lock:
            rows = {row.cell: row for row in (*clean, *steered)}
            done = {item.cell: item for pack in engine.generate(list(rows.values())) for item in pack}
        for prompt, left, right in zip(prompts, clean, steered, strict=True):
            if reason := done[right.cell].failure:
                raise UserError(f"the prompt {prompt[:40]!r} has no text: {reason}")
            yield SideBySide(prompt, done[left.cell].completion, done[right.cell].completion, _named(self.condition, options))


def _named(condition: Condition, options: Options) -> str:
    alpha = condition.alpha if options.alpha is None else options.alpha
    unit = "" if condition.alpha_unit == "vector" else f" {condition.alpha_unit}"
    done = "" if condition.operation == "add" else f" ({condition.operation})"
    return f"{condition.emotion}, layer {condition.layer}, alpha {alpha:g}{unit}{done}"
