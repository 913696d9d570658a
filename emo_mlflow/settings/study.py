"""The settings of a study, as a person wrote them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from emo_mlflow.common.names import same_name
from emo_mlflow.errors import UserError
from emo_mlflow.settings.declared import parameter, read, same_as, table_of
from emo_mlflow.settings.parsing import as_it_is, choice, each, integer, items, number, or_nothing
from emo_mlflow.settings.scopes import scope
from emo_mlflow.settings.sweep import SweepSettings
from emo_mlflow.settings.templates import check_form
from emo_mlflow.types import AlphaUnit, Control, FitOn, Site, Template

Procedure = Literal["sequence", "holm"]
Search = Literal["none", "depths"]
EVERY = ""  # the key of a value that holds for every emotion


@dataclass(frozen=True)
class Budget:
    """How much a study may take at most: minutes of generation, or texts."""

    amount: float
    unit: Literal["min", "texts"]


def budget(text: str) -> Budget:
    """Reads `10min` or `5000texts`."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) ?(min|texts)", text)
    if not found or not float(found[1]):
        raise UserError("is no budget: give minutes or texts, such as 10min or 5000texts")
    return Budget(float(found[1]), "min" if found[2] == "min" else "texts")


def layer_by_emotion(text: str) -> dict[str, int]:
    """Reads `auto`, a layer, or one per emotion such as `gratitude:12,anger:18`; nothing for auto."""
    return {} if text == "auto" else {name: integer(0)(value) for name, value in _pairs(text)}


def alpha_by_emotion(text: str) -> dict[str, float]:
    """Reads a strength, or one per emotion such as `gratitude:0.2,anger:0.4`."""
    return {name: number(value) for name, value in _pairs(text)}


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = [item.partition(":") for item in items(text)]
    pairs = [(name.strip(), value.strip()) if colon else (EVERY, name.strip()) for name, colon, value in parts]
    if len(dict(pairs)) < len(pairs) or (len(pairs) > 1 and EVERY in dict(pairs)):
        raise UserError("gives one emotion two values, or one value beside those of single emotions: give one value, or EMOTION:VALUE for each")
    return pairs


# fmt: off
@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What `study` is asked for. `emotions` is None for all in the data set."""

    model: str = same_as(SweepSettings, "model")
    dataset: str = same_as(SweepSettings, "dataset")
    text_column: str = same_as(SweepSettings, "text_column")
    emotion_column: str = same_as(SweepSettings, "emotion_column")
    encoding: str = same_as(SweepSettings, "encoding")
    pairs: str = same_as(SweepSettings, "pairs")
    personas: str = same_as(SweepSettings, "personas")
    emotions: tuple[str, ...] | None = same_as(SweepSettings, "emotions")
    layers: Mapping[str, int] = parameter(
        layer_by_emotion, "auto",
        "Where to inject: auto (from how well directions read held-out texts), a layer, or one per emotion: gratitude:12,anger:18.", "where",
    )
    alpha: Mapping[str, float] = parameter(
        alpha_by_emotion, "0.3", "How strongly: a value, or one per emotion: gratitude:0.2,anger:0.4.", "how much"
    )
    alpha_unit: AlphaUnit = parameter(
        choice(*get_args(AlphaUnit)), "kl",
        "Unit of alpha: damage to neutral text, in nats per token (kl), the direction (vector), or the stream's norm (residual).", "how much",
    )
    scope: str = parameter(
        scope, "generated", "Positions: generated (every new token), window (the last W), all (the prompt too), first:K, prompt, prompt:K.", "where"
    )
    patch_window: int = parameter(integer(1), "3", "W of scope window.", "where")
    site: Site = same_as(SweepSettings, "site")
    direction: str = same_as(SweepSettings, "direction")
    prepend_bos: bool = same_as(SweepSettings, "prepend_bos")
    template: Template | Literal["auto"] = same_as(SweepSettings, "template")
    system: str = same_as(SweepSettings, "system")
    fit_on: FitOn | None = same_as(SweepSettings, "fit_on")
    max_samples: int = parameter(integer(6), "30", "Prompts to continue, at most.", "how much")
    samples_per_prompt: int = same_as(SweepSettings, "samples_per_prompt")
    sequence_length: int = parameter(integer(1), "20", "New tokens per text.", "how much")
    temperature: float = same_as(SweepSettings, "temperature")
    budget: Budget | None = parameter(
        or_nothing(budget), "", "The most that it may take, such as 10min or 5000texts; default: 10min if 12 prompts fit.", "how much"
    )
    controls: tuple[Control, ...] = parameter(
        each(choice(*get_args(Control))), "isotropic,covariance,shuffled", "Random directions to beat: isotropic, covariance, shuffled.", "what"
    )
    procedure: Procedure = parameter(
        choice(*get_args(Procedure)), "holm", "Every emotion is answered (holm), or one after another until one is not shown (sequence).", "what"
    )
    search: Search = parameter(
        choice(*get_args(Search)), "none", "One layer (none), or the best of up to four, for random directions too (depths).", "where"
    )
    items: str = parameter(as_it_is, "builtin", "Multiple-choice items: builtin, or a .jsonl file with question, choices, answer.", "what")
    margin: float = parameter(number, "0.2", "Loss of the right answer's log-probability that would matter, in nats.", "how much")
    scorers: tuple[str, ...] = same_as(SweepSettings, "scorers")
    device: str = same_as(SweepSettings, "device")
    dtype: str = same_as(SweepSettings, "dtype")
    batch_size: int | None = same_as(SweepSettings, "batch_size")
    seed: int = same_as(SweepSettings, "seed")
    resume: str = parameter(as_it_is, "none", "none, or the id of a study's run to go on with.", "running", how=True)
    engine: str = same_as(SweepSettings, "engine")
    ray_address: str = same_as(SweepSettings, "ray_address")
# fmt: on


def make_study(given: Mapping[str, str | None]) -> StudySettings:
    """The settings of a study.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    settings = StudySettings(**read(table_of(StudySettings), given))
    if settings.samples_per_prompt > 1 and settings.temperature == 0:
        raise UserError("samples_per_prompt above 1 needs temperature above 0: greedy samples are all the same")
    if settings.alpha_unit == "kl" and min(settings.alpha.values()) <= 0:
        raise UserError(f"alpha={min(settings.alpha.values()):g} with alpha_unit=kl is a damage, and must be above 0")
    if settings.margin <= 0:
        raise UserError(f"margin={settings.margin:g} leaves no loss to rule out: give a number above 0")
    if settings.ray_address != "local" and settings.engine != "ray":
        raise UserError(f"ray_address={settings.ray_address!r} needs engine=ray")
    check_form(settings)
    return settings


def value_of(values: Mapping[str, float], emotion: str, what: str) -> float:
    """An emotion's own value, or the one that holds for all.

    Raises:
        UserError: if it has none.
    """
    own = {same_name(name): value for name, value in values.items()}
    if (key := same_name(emotion)) in own or EVERY in own:
        return own.get(key, own.get(EVERY, 0.0))
    raise UserError(f"{what} has no value for {emotion}: it names {', '.join(values)}")


def check_emotions(values: Mapping[str, float], emotions: tuple[str, ...], what: str) -> None:
    """Refuses a value for an emotion that is not there.

    Raises:
        UserError: naming it.
    """
    known = {same_name(name) for name in emotions}
    if unknown := [name for name in values if name != EVERY and same_name(name) not in known]:
        raise UserError(f"{what} names {', '.join(unknown)}, which this study does not have: it has {', '.join(emotions)}")
