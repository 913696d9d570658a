"""The settings of a sweep: as a person wrote them, with a profile's defaults, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emo_mlflow.errors import UserError
from emo_mlflow.settings.parsing import Parameter, read
from emo_mlflow.settings.tables import HEADS, PARAMETERS, PROFILES, REPLACED_IN_FULL
from emo_mlflow.types import AlphaUnit, HeadOperation, Operation, Scope, Screen, Site, digest


@dataclass(frozen=True)
class SweepConfig:
    """Everything that decides what a sweep computes and how. See `emo-mlflow sweep --help` for each.

    `layers` is a text such as `all/6` until the model is known, and then the layers themselves. `emotions` is None for "all in the
    data set" until that is read. `batch_size` is None for "as fits the memory".
    """

    model: str
    profile: str
    dataset: str
    emotions: tuple[str, ...] | None
    layers: str | tuple[int, ...]
    alphas: tuple[float, ...]
    alpha_unit: AlphaUnit
    alpha_schedule: str
    scope: Scope
    patch_window: tuple[int, ...]
    site: Site
    operation: Operation | HeadOperation
    direction: str
    directions: str
    prepend_bos: bool
    sequence_length: int
    min_new_tokens: int
    max_samples: int
    samples_per_prompt: int
    temperature: float
    num_random: int
    scorers: tuple[str, ...]
    score_prompt: bool
    device: str
    dtype: str
    batch_size: int | None
    seed: int
    child_runs: str
    resume: str
    engine: str
    ray_address: str


@dataclass(frozen=True)
class HeadConfig(SweepConfig):
    """A sweep over attention heads. `target_layer` is None for the last block, until the model is known."""

    screen: Screen
    top: int
    target_layer: int | None

# What does not change which numbers a sweep computes, so that it may differ when a sweep is resumed.
HOW_NOT_WHAT = ("profile", "device", "batch_size", "child_runs", "resume", "engine", "ray_address")


def make_config(profile: str = "smoke", given: Mapping[str, str | None] | None = None) -> SweepConfig:
    """The settings of a sweep: a profile's, with single parameters overridden; None and empty texts leave the profile's value.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    config = SweepConfig(profile=profile, **_values(PARAMETERS, profile, given or {}))
    if config.directions != "fit" and config.direction != "mean_diff":
        raise UserError(
            f"direction={config.direction} chooses what is fitted, and directions={config.directions} is fitted already: give one of them"
        )
    return config


def make_head_config(profile: str = "smoke", given: Mapping[str, str | None] | None = None) -> HeadConfig:
    """The settings of a sweep over heads; a profile's scope is for directions, and does not count.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    return HeadConfig(profile=profile, **REPLACED_IN_FULL, **_values(HEADS, profile, given or {}, ignored=("scope",)))


def _values(
    table: Mapping[str, Parameter], profile: str, given: Mapping[str, str | None], ignored: Sequence[str] = ()
) -> dict[str, Any]:
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    values = read(table, given, {name: text for name, text in PROFILES[profile].items() if name not in ignored})
    if values["min_new_tokens"] is None:
        values["min_new_tokens"] = values["sequence_length"]
    if values["min_new_tokens"] > values["sequence_length"]:
        raise UserError(f"min_new_tokens={values['min_new_tokens']} is more than sequence_length={values['sequence_length']}")
    if values["samples_per_prompt"] > 1 and values["temperature"] == 0:
        raise UserError("samples_per_prompt above 1 needs temperature above 0: greedy samples are all the same")
    if values["ray_address"] != "local" and values["engine"] != "ray":
        raise UserError(f"ray_address={values['ray_address']!r} needs engine=ray")
    return values


def work_hash(config: SweepConfig) -> str:
    """Identifies what a sweep computes, however and wherever it is run."""
    return digest({name: value for name, value in asdict(config).items() if name not in HOW_NOT_WHAT})
