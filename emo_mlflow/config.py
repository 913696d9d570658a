"""The parameters of a sweep: their syntax, their defaults in each profile, and what cannot be combined."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from emo_mlflow.errors import UserError
from emo_mlflow.schedules import schedule_factors
from emo_mlflow.types import AlphaUnit, Operation, Scope, Site, SweepConfig, digest

# What does not change which numbers a sweep computes, so that it may differ when a sweep is resumed.
HOW_NOT_WHAT = ("profile", "device", "batch_size", "child_runs", "resume", "engine", "ray_address")


@dataclass(frozen=True)
class Parameter:
    """One parameter: how its text is read, what it means, and its default outside every profile."""

    parse: Callable[[str], Any]
    default: str
    help: str


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise UserError(f"is not one of {', '.join(values)}")
        return text

    return parse


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least:
            raise UserError(f"is not a whole number of at least {least}")
        return int(text)

    return parse


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError("is not a number") from None
    if not math.isfinite(value):
        raise UserError("is not a finite number")
    return value


def _temperature(text: str) -> float:
    if (value := _number(text)) < 0:
        raise UserError("is below 0; 0 is greedy decoding")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise UserError("is neither true nor false")
    return text.lower() in ("true", "1", "yes", "on")


def _items(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UserError("has an empty item; separate items with single commas")
    return list(dict.fromkeys(items))


def _each(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(dict.fromkeys(parse(item) for item in _items(text)))


def _emotions(text: str) -> tuple[str, ...] | None:
    return None if text == "all" else tuple(_items(text))


def _layers(text: str) -> str:
    if not re.fullmatch(r"all(/[1-9]\d*)?|\d+(-\d+(/[1-9]\d*)?)?(,\d+(-\d+(/[1-9]\d*)?)?)*", text.replace(" ", "")):
        raise UserError("is not a choice of layers: use all, all/6 (every sixth), 0-11, 0-11/2 or 0,3,6")
    return text.replace(" ", "")


def _schedule(text: str) -> str:
    schedule_factors(text, 1)
    return text


def _batch_size(text: str) -> int | None:
    return None if text == "auto" else _integer(1)(text)


def _ray_address(text: str) -> str:
    if text != "local" and not re.fullmatch(r"[\w.-]+:\d{1,5}", text, re.ASCII):
        raise UserError("is not host:port of a Ray cluster's head, such as 10.0.0.1:6379 (to submit from outside, see docs/scale.md)")
    return text


def _text(text: str) -> str:
    return text


PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(_text, "smollm2-135m", "Model: a built-in name, a hub id (id@revision), or a local folder."),
    "dataset": Parameter(_text, "builtin", "Prompts: builtin, or a .jsonl, .csv or .parquet file with text, emotion, perhaps role."),
    "emotions": Parameter(_emotions, "all", "Emotions to inject, separated by commas, or all."),
    "layers": Parameter(_layers, "all", "Layers: all, all/6 (every sixth), 0-11 or 0,3,6."),
    "alphas": Parameter(_each(_number), "1.0", "Strengths, such as 1.0 or -2,-1,0.5."),
    "alpha_unit": Parameter(_choice(*get_args(AlphaUnit)), "vector", "Unit of alpha: the direction (vector), or the layer's mean norm (residual)."),
    "alpha_schedule": Parameter(_schedule, "constant", "Alpha over new tokens: constant, linear, exponential[:HALF_LIFE] or factors 1,0.5."),
    "scope": Parameter(_choice(*get_args(Scope)), "window", "Positions: the last W new tokens (window), every new one (generated), all."),
    "patch_window": Parameter(_each(_integer(1)), "3", "W of scope window; a list is swept. Other scopes ignore it."),
    "site": Parameter(_choice(*get_args(Site)), "resid_pre", "Where in the block: before it (resid_pre) or after it (resid_post)."),
    "operation": Parameter(_choice(*get_args(Operation)), "add", "What is done: add, project_out or clamp."),
    "directions": Parameter(_text, "fit", "fit on the data set, or a run id or .safetensors file to take directions from."),
    "prepend_bos": Parameter(_boolean, "true", "Put the model's document-start token in front of every text."),
    "sequence_length": Parameter(_integer(1), "30", "New tokens per text."),
    "min_new_tokens": Parameter(_integer(0), "", "End-of-sequence is suppressed before this many; default: the whole length."),
    "max_samples": Parameter(_integer(1), "8", "Test prompts to continue, at most."),
    "samples_per_prompt": Parameter(_integer(1), "1", "Texts per prompt; more than one needs temperature above 0."),
    "temperature": Parameter(_temperature, "0", "0 is greedy decoding."),
    "num_random": Parameter(_integer(0), "0", "Random control directions per condition."),
    "scorers": Parameter(_each(_text), "embedded", "embedded, hub, or names and folders of scorers, separated by commas."),
    "score_prompt": Parameter(_boolean, "false", "Score the prompt together with its continuation."),
    "device": Parameter(_text, "auto", "auto, cpu, cuda, cuda:N or mps."),
    "dtype": Parameter(_choice("float32", "bfloat16", "float16"), "float32", "Number format of the weights; float32 is the reference."),
    "batch_size": Parameter(_batch_size, "auto", "Rows decoded together, or auto: as fits the memory."),
    "seed": Parameter(_integer(0), "0", "Seed of random controls, sampling and splits."),
    "child_runs": Parameter(_choice("auto", "all", "none"), "auto", "A child run per condition: auto stops past 200."),
    "resume": Parameter(_text, "none", "none; the id of a run to go on with; or auto: an unfinished run of the same sweep, if there is one."),
    "engine": Parameter(_choice("local", "ray"), "local", "What runs the stages: this process (local), or the machines of a Ray cluster (ray)."),
    "ray_address": Parameter(_ray_address, "local", "host:port of a Ray cluster's head, or local: one of this machine (in a Ray job: the job's)."),
}  # fmt: skip

PROFILES: dict[str, dict[str, str]] = {
    "smoke": {
        "max_samples": "6",
        "layers": "all/6",
        "alphas": "1.0,2.0",
        "scope": "generated",
        "num_random": "3",
        "sequence_length": "20",
    },
    "seed": {"emotions": "gratitude,anger,apology"},
    "baseline": {"emotions": "gratitude,anger,apology", "max_samples": "225", "num_random": "50"},
}


def make_config(profile: str = "smoke", given: Mapping[str, str | None] | None = None) -> SweepConfig:
    """The settings of a profile with single parameters overridden; None and empty texts leave the profile's value.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    overrides = {name: text for name, text in (given or {}).items() if text not in (None, "")}
    if unknown := sorted(set(overrides) - set(PARAMETERS)):
        raise UserError(f"unknown parameter {unknown[0]!r}: there are {', '.join(PARAMETERS)}")
    values: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        text = (overrides.get(name) or PROFILES[profile].get(name) or parameter.default).strip()
        if name == "min_new_tokens" and not text:
            text = str(values["sequence_length"])
        try:
            values[name] = parameter.parse(text)
        except UserError as error:
            raise UserError(f"{name}={text!r} {error}") from None
    config = SweepConfig(profile=profile, **values)
    if config.min_new_tokens > config.sequence_length:
        raise UserError(f"min_new_tokens={config.min_new_tokens} is more than sequence_length={config.sequence_length}")
    if config.samples_per_prompt > 1 and config.temperature == 0:
        raise UserError("samples_per_prompt above 1 needs temperature above 0: greedy samples are all the same")
    if config.ray_address != "local" and config.engine != "ray":
        raise UserError(f"ray_address={config.ray_address!r} needs engine=ray")
    return config


def resolve_layers(layers: str | tuple[int, ...], n_layers: int) -> tuple[int, ...]:
    """The layers that a choice such as `all/6` or `0-11,20` names, in order.

    Raises:
        UserError: if the model does not have one of them.
    """
    if not isinstance(layers, str):
        chosen = set(layers)
    else:
        chosen = set()
        for part in layers.split(","):
            span, _, stride = part.partition("/")
            first, _, last = (f"0-{n_layers - 1}" if span == "all" else span).partition("-")
            chosen.update(range(int(first), int(last or first) + 1, int(stride or 1)))
    if not chosen:
        raise UserError(f"layers={layers!r} names no layer: give the smaller number first, as in 0-11")
    if max(chosen) >= n_layers:
        raise UserError(f"layer {max(chosen)} does not exist: the model has layers 0 to {n_layers - 1}")
    return tuple(sorted(chosen))


def work_hash(config: SweepConfig) -> str:
    """Identifies what a sweep computes, however and wherever it is run."""
    return digest({name: value for name, value in asdict(config).items() if name not in HOW_NOT_WHAT})
