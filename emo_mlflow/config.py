"""The parameters of every command that loads a model: their defaults, in each profile, and what cannot be combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

from emo_mlflow.errors import UserError
from emo_mlflow.parameters import (
    Parameter,
    as_it_is,
    batch_size,
    boolean,
    choice,
    direction,
    each,
    emotions,
    integer,
    layers,
    method,
    needed,
    number,
    or_nothing,
    ray_address,
    read,
    schedule,
    temperature,
)
from emo_mlflow.types import (
    Aggregation,
    AlphaUnit,
    HeadConfig,
    HeadOperation,
    MapKind,
    Operation,
    Pairing,
    Scope,
    Screen,
    Site,
    SweepConfig,
    digest,
)

# What does not change which numbers a sweep computes, so that it may differ when a sweep is resumed.
HOW_NOT_WHAT = ("profile", "device", "batch_size", "child_runs", "resume", "engine", "ray_address")


PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(as_it_is, "smollm2-135m", "Model: a built-in name, a hub id (id@revision), or a local folder."),
    "dataset": Parameter(as_it_is, "builtin", "Prompts: builtin, or a .jsonl, .csv or .parquet file with text, emotion, perhaps role."),
    "emotions": Parameter(emotions, "all", "Emotions to inject, separated by commas, or all."),
    "layers": Parameter(layers, "all", "Layers: all, all/6 (every sixth), 0-11 or 0,3,6."),
    "alphas": Parameter(each(number), "1.0", "Strengths, such as 1.0 or -2,-1,0.5."),
    "alpha_unit": Parameter(choice(*get_args(AlphaUnit)), "vector", "Unit of alpha: the direction (vector), or the layer's mean norm (residual)."),
    "alpha_schedule": Parameter(schedule, "constant", "Alpha over new tokens: constant, linear, exponential[:HALF_LIFE] or factors 1,0.5."),
    "scope": Parameter(choice(*get_args(Scope)), "window", "Positions: the last W new tokens (window), every new one (generated), all."),
    "patch_window": Parameter(each(integer(1)), "3", "W of scope window; a list is swept. Other scopes ignore it."),
    "site": Parameter(choice(*get_args(Site)), "resid_pre", "Where in the block: before it (resid_pre) or after it (resid_post)."),
    "operation": Parameter(choice(*get_args(Operation)), "add", "What is done: add, project_out or clamp."),
    "direction": Parameter(direction, "mean_diff", "What is fitted and injected: mean_diff, pc1 (pc2, ...), lda, logistic or subspace:K."),
    "directions": Parameter(as_it_is, "fit", "fit on the data set, or a run id or .safetensors file to take directions from."),
    "prepend_bos": Parameter(boolean, "true", "Put the model's document-start token in front of every text."),
    "sequence_length": Parameter(integer(1), "30", "New tokens per text."),
    "min_new_tokens": Parameter(or_nothing(integer(0)), "", "End-of-sequence is suppressed before this many; default: the whole length."),
    "max_samples": Parameter(integer(1), "8", "Test prompts to continue, at most."),
    "samples_per_prompt": Parameter(integer(1), "1", "Texts per prompt; more than one needs temperature above 0."),
    "temperature": Parameter(temperature, "0", "0 is greedy decoding."),
    "num_random": Parameter(integer(0), "0", "Random control directions per condition."),
    "scorers": Parameter(each(as_it_is), "embedded", "embedded, hub, or names and folders of scorers, separated by commas."),
    "score_prompt": Parameter(boolean, "false", "Score the prompt together with its continuation."),
    "device": Parameter(as_it_is, "auto", "auto, cpu, cuda, cuda:N or mps."),
    "dtype": Parameter(choice("float32", "bfloat16", "float16"), "float32", "Number format of the weights; float32 is the reference."),
    "batch_size": Parameter(batch_size, "auto", "Rows decoded together, or auto: as fits the memory."),
    "seed": Parameter(integer(0), "0", "Seed of random controls, sampling and splits."),
    "child_runs": Parameter(choice("auto", "all", "none"), "auto", "A child run per condition: auto stops past 200."),
    "resume": Parameter(as_it_is, "none", "none; the id of a run to go on with; or auto: an unfinished run of the same sweep, if there is one."),
    "engine": Parameter(choice("local", "ray"), "local", "What runs the stages: this process (local), or the machines of a Ray cluster (ray)."),
    "ray_address": Parameter(ray_address, "local", "host:port of a Ray cluster's head, or local: one of this machine (in a Ray job: the job's)."),
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


def _shared(*names: str) -> dict[str, Parameter]:
    return {name: PARAMETERS[name] for name in names}


VECTORS: dict[str, Parameter] = {
    **_shared("model", "dataset", "emotions", "site", "direction"),
    "aggregation": Parameter(choice(*get_args(Aggregation)), "mean", "A text's tokens as one vector: mean, last, or by the last one's attention."),
    "methods": Parameter(each(method), "mean_diff,pc1,lda,logistic", "Read-outs that are judged on held-out texts at every layer."),
    "components": Parameter(integer(1), "8", "Rank of the subspaces in subspaces.safetensors."),
    "n_bootstrap": Parameter(integer(2), "100", "Resamples of texts for the stability of subspaces."),
    "save_activations": Parameter(boolean, "false", "Keep every text's vector at every layer in activations.safetensors."),
    **_shared("prepend_bos", "device", "dtype", "seed"),
}  # fmt: skip

ALIGN: dict[str, Parameter] = {
    "model_a": Parameter(needed, "", "Model whose directions are carried over: a name, a hub id or a folder."),
    "model_b": Parameter(needed, "", "Model that they are carried to."),
    **_shared("dataset", "emotions", "site"),
    "map": Parameter(choice(*get_args(MapKind)), "procrustes", "Map between the models' residual spaces: a rotation (procrustes), or ridge."),
    "unit": Parameter(choice(*get_args(Pairing)), "word", "What pairs the models: the stream at each word's end (word), or a text's mean."),
    "k_max": Parameter(integer(1), "8", "Overlaps are computed for subspaces of rank 1 to this."),
    "depths": Parameter(integer(1), "8", "Relative depths of each model, all of which are paired."),
    "n_random": Parameter(integer(1), "500", "Random subspaces of the first null."),
    "n_permutations": Parameter(integer(1), "100", "Shuffled labels of the second null."),
    **_shared("prepend_bos", "device", "dtype", "seed"),
}  # fmt: skip

# A head's output is replaced in full, so there are no strengths, sites or directions to choose.
REPLACED_IN_FULL: dict[str, Any] = {
    "alphas": (1.0,),
    "alpha_unit": "vector",
    "alpha_schedule": "constant",
    "site": "resid_pre",
    "direction": "mean_diff",
    "directions": "fit",
}
OPERATION_HELP = (
    "What a head's output becomes: zero; its mean over neutral texts (mean); its mean over the emotion's (patch); "
    "or, while texts of the emotion are continued, its mean over neutral ones (restore)."
)
HEADS: dict[str, Parameter] = {name: parameter for name, parameter in PARAMETERS.items() if name not in REPLACED_IN_FULL} | {
    "scope": Parameter(choice(*get_args(Scope)), "all", "Positions: the prompt too (all), every new one (generated), or the last W (window)."),
    "operation": Parameter(choice(*get_args(HeadOperation)), "zero", OPERATION_HELP),
    "num_random": Parameter(integer(0), "0", "Control heads per emotion, drawn at random from the others of these layers."),
    "screen": Parameter(choice(*get_args(Screen)), "top", "Heads that generation tests: those of the largest direct effect (top), or all."),
    "top": Parameter(integer(1), "20", "How many heads per emotion with screen=top."),
    "target_layer": Parameter(or_nothing(integer(0)), "", "The direct effect is on the stream after this block; default: the last."),
}  # fmt: skip


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


def _layer_choice(text: str) -> str:
    try:
        return layers(text)
    except UserError as error:
        raise UserError(f"layers={text!r} {error}") from None


def resolve_layers(layers: str | tuple[int, ...], n_layers: int) -> tuple[int, ...]:
    """The layers that a choice such as `all/6` or `0-11,20` names, in order.

    Raises:
        UserError: if it is no such choice, or the model does not have one of them.
    """
    if not isinstance(layers, str):
        chosen = set(layers)
    else:
        chosen = set()
        for part in _layer_choice(layers).split(","):
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
