"""The parameters of every command that loads a model: their defaults, in each profile, and what cannot be combined."""

from __future__ import annotations

from typing import Any, get_args

from emo_mlflow.settings.parsing import (
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
    schedule,
    temperature,
)
from emo_mlflow.types import (
    Aggregation,
    AlphaUnit,
    HeadOperation,
    MapKind,
    Operation,
    Pairing,
    Scope,
    Screen,
    Site,
)

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
    "operation": Parameter(choice(*get_args(Operation)), "add", "What is done: add, project_out, clamp, or add_keep_norm (the length is kept)."),
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
