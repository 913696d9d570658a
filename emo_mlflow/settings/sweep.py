"""The settings of a sweep, over directions or over heads: as a person wrote them, and as they are for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from emo_mlflow.errors import UserError
from emo_mlflow.settings.combinations import bands_of, bands_text, combine
from emo_mlflow.settings.declared import parameter, read, table_of
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.settings.parsing import (
    arms,
    as_it_is,
    batch_size,
    boolean,
    choice,
    direction,
    each,
    emotions,
    integer,
    layers,
    number,
    or_nothing,
    ray_address,
    schedule,
    temperature,
)
from emo_mlflow.settings.profiles import DEFAULT, OF_HEADS, PROFILES
from emo_mlflow.settings.scopes import scope
from emo_mlflow.settings.templates import check_form, fit_on_of
from emo_mlflow.types import (
    FEW_DRAWS,
    AlphaUnit,
    FitOn,
    HeadOperation,
    Likelihoods,
    Operation,
    Screen,
    Site,
    Template,
    digest,
)


# fmt: off
@dataclass(frozen=True, kw_only=True)
class SweepFields:
    """What both lives of a sweep's settings share, in the order of config.json. `batch_size` is None for "as fits the memory"."""

    kind: ClassVar[str] = "sweep"

    model: str = parameter(as_it_is, "smollm2-135m", "Model: a built-in name, a hub id (id@revision), a folder or .gguf file.", "what", of_child=True)
    profile: str
    dataset: str = parameter(
        as_it_is, "builtin", "Prompts: builtin, or a .jsonl, .csv, .tsv or .parquet file (text or messages, emotion, perhaps role).", "what"
    )
    text_column: str = parameter(as_it_is, "", "Name of the data set's column with the texts, where it is not text.", "what", before="")
    emotion_column: str = parameter(as_it_is, "", "Name of the data set's column with the emotions, where it is not emotion.", "what", before="")
    encoding: str = parameter(as_it_is, "", "Of the data set's file, such as latin-1; UTF-8 and marked UTF-16 need none.", "what", before="")
    pairs: str = parameter(
        as_it_is, "", "Contrastive pairs to fit on: a file with positive and negative (and emotion), CAA's choices, or endings.", "what", before=""
    )
    personas: str = parameter(as_it_is, "", "Who speaks the endings of pairs=: grateful/indifferent.", "what", before="")
    emotions: Any
    layers: Any
    alphas: tuple[float, ...] = parameter(each(number), "1.0", "Strengths, such as 1.0 or -2,-1,0.5.", "how much")
    alpha_unit: AlphaUnit = parameter(
        choice(*get_args(AlphaUnit)), "vector",
        "Unit of alpha: the direction (vector), the layer's mean norm (residual), or damage to neutral text (kl).", "how much",
        of_child=True, apart=3,
    )
    alpha_schedule: str = parameter(
        schedule, "constant", "Alpha over new tokens: constant, linear, exponential[:HALF_LIFE] or factors 1,0.5.", "how much", of_child=True, apart=4
    )
    scope: str = parameter(
        scope, "window", "Positions: window (the last W new tokens), generated (every new one), first:K, prompt, prompt:K (its last K), all.",
        "where", apart=1,
    )
    patch_window: tuple[int, ...] = parameter(each(integer(1)), "3", "W of scope window; a list is swept. Other scopes ignore it.", "where", apart=2)
    site: Site = parameter(
        choice(*get_args(Site)), "resid_pre", "Where in the block: before it (resid_pre) or after it (resid_post).", "where", of_child=True, apart=5
    )
    operation: Operation | HeadOperation = parameter(
        choice(*get_args(Operation)), "add", "What is done: add, project_out, clamp, or add_keep_norm (the length is kept).", "what",
        of_child=True, apart=6,
    )
    direction: str = parameter(
        direction, "mean_diff", "What is fitted and injected: mean_diff, pc1 (pc2, ...), lda, logistic or subspace:K.", "what",
        of_child=True, apart=11,
    )
    arms: tuple[str, ...] = parameter(
        arms, "direction",
        "What is compared with the baseline: direction, and beside it instruction (the emotion is asked for), examples (texts of it come first).",
        "what", before="direction",
    )
    instructions: str = parameter(
        as_it_is, "", 'A .json file {"EMOTION": "instruction"} for the arm instruction; default: built in.', "what", before=""
    )
    shots: int = parameter(integer(1), "4", "Texts of the emotion that come first in the arm examples.", "what", before="4")
    combine: str = parameter(
        combine, "", "Further conditions of several directions at once, such as gratitude+apology:-0.5.", "what", apart=18, before="",
    )
    directions: str = parameter(as_it_is, "fit", "fit on the data set, or a run id or .safetensors file to take directions from.", "what", apart=12)
    prepend_bos: bool = parameter(boolean, "true", "Put the model's document-start token in front of every text.", "what", of_child=True, apart=10)
    template: Template | Literal["auto"] = parameter(
        choice(*get_args(Template), "auto"), "none",
        "Prompts as they are (none), as a user's turn in the model's chat template (chat), or chat for an instruct model (auto).",
        "what", of_child=True, apart=15, before="none",
    )
    system: str = parameter(as_it_is, "", "System turn in front of every chat.", "what", apart=16, before="")
    fit_on: FitOn | None = parameter(
        or_nothing(choice(*get_args(FitOn))), "",
        "Tokens that directions are fitted on: response (the assistant's), text (all but the first), last. Default: text; in a chat, response.",
        "what", apart=17, before="text",
    )
    sequence_length: int = parameter(integer(1), "30", "New tokens per text.", "how much", of_child=True, apart=7)
    min_new_tokens: int = parameter(
        or_nothing(integer(0)), "", "End-of-sequence is suppressed before this many; default: the whole length.", "how much", apart=8
    )
    max_samples: int = parameter(integer(1), "8", "Test prompts to continue, at most.", "how much", of_child=True)
    samples_per_prompt: int = parameter(integer(1), "1", "Texts per prompt; more than one needs temperature above 0.", "how much", of_child=True)
    temperature: float = parameter(temperature, "0", "0 is greedy decoding.", "how much", of_child=True, apart=9)
    num_random: int = parameter(integer(0), "0", "Random control directions per condition.", "how much", of_child=True)
    scorers: tuple[str, ...] = parameter(
        each(as_it_is), "embedded",
        "embedded, hub, names or folders of scorers, models:/NAME/VERSION, or judge:URL?model=NAME&rubric=FILE (not in a study), "
        "separated by commas.",
        "scoring",
    )
    judge_max_calls: int = parameter(integer(1), "10000", "How often a judge among the scorers is asked, at most.", "scoring", how=True)
    likelihoods: Likelihoods = parameter(
        choice(*get_args(Likelihoods)), "few",
        f"Texts with a likelihood, which says how broken they are: all, none, or all but of random directions past draw {FEW_DRAWS} (few).",
        "scoring", before="few",  # what an earlier sweep did beyond that loses nothing
    )
    score_prompt: bool = parameter(boolean, "false", "Score the prompt together with its continuation.", "scoring")
    device: str = parameter(as_it_is, "auto", "auto, cpu, cuda, cuda:N or mps.", "running", how=True)
    dtype: str = parameter(
        choice("float32", "bfloat16", "float16"), "float32", "Number format of the weights; float32 is the reference.", "running",
        of_child=True, apart=13,
    )
    batch_size: int | None = parameter(batch_size, "auto", "Rows decoded together, or auto: as fits the memory.", "running", how=True)
    seed: int = parameter(integer(0), "0", "Seed of random controls, sampling and splits.", "running", of_child=True, apart=14)
    child_runs: str = parameter(choice("auto", "all", "none"), "auto", "A child run per condition: auto stops past 200.", "logging", how=True)
    resume: str = parameter(
        as_it_is, "none", "none; the id of a run to go on with; or auto: an unfinished run of the same sweep, if there is one.", "running", how=True
    )
    engine: str = parameter(
        choice("local", "ray"), "local", "What runs the stages: this process (local), or the machines of a Ray cluster (ray).", "running", how=True
    )
    ray_address: str = parameter(
        ray_address, "local", "host:port of a Ray cluster's head, or local: one of this machine (in a Ray job: the job's).", "running", how=True
    )

    # fmt: on


@dataclass(frozen=True, kw_only=True)
class SweepSettings(SweepFields):
    """Everything that decides what a sweep computes and how, as it was asked for. `emotions` is None for all in the data set."""

    emotions: tuple[str, ...] | None = parameter(emotions, "all", "Emotions to inject, separated by commas, or all.", "what")
    layers: str = parameter(layers, "all", "Layers: all, all/6 (every sixth), 0-11 or 0,3,6; or bands that are edited together, 8+9+10.", "where")

    def resolved(self, emotions: tuple[str, ...], n_layers: int) -> SweepConfig:
        """The settings for a model of that depth.

        Raises:
            UserError: for a layer that the model does not have.
        """
        bands = bands_text(bands_of(self.layers, n_layers))
        return SweepConfig(**vars(self) | self._known(emotions, resolve_layers(self.layers, n_layers)), bands=bands)

    def _known(self, emotions: tuple[str, ...], layers: tuple[int, ...]) -> dict[str, Any]:
        return {"emotions": emotions, "layers": layers, "fit_on": fit_on_of(self.fit_on, self.template)}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SweepFields):
    """The settings of a sweep for one data set and one model: which emotions, which layers.

    Attributes:
        layers: of bands, the first of each.
        bands: layers that are edited together, such as `8+9+10,14+15`; empty for single layers.
    """

    emotions: tuple[str, ...]
    layers: tuple[int, ...]
    bands: str = ""


@dataclass(frozen=True, kw_only=True)
class HeadFields:
    """What is different where a sweep is over attention heads.

    A head's output is replaced in full, so there are no strengths, sites or directions to choose: the first six are as they are.
    """

    kind: ClassVar[str] = "heads"

    alphas: tuple[float, ...] = (1.0,)
    alpha_unit: AlphaUnit = "vector"
    alpha_schedule: str = "constant"
    site: Site = "resid_pre"
    direction: str = "mean_diff"
    directions: str = "fit"
    pairs: str = ""
    personas: str = ""
    combine: str = ""
    arms: tuple[str, ...] = ("direction",)
    instructions: str = ""
    shots: int = 4
    scope: str = parameter(
        scope, "all", "Positions: all (the prompt too), generated (every new one), window (the last W), first:K, prompt, prompt:K.", "where"
    )
    operation: Operation | HeadOperation = parameter(
        choice(*get_args(HeadOperation)), "zero",
        "What a head's output becomes: zero; its mean over neutral texts (mean); its mean over the emotion's (patch); "
        "or, while texts of the emotion are continued, its mean over neutral ones (restore).",
        "what",
    )
    num_random: int = parameter(integer(0), "0", "Control heads per emotion, drawn at random from the others of these layers.", "how much")
    screen: Screen = parameter(
        choice(*get_args(Screen)), "top", "Heads that generation tests: those of the largest direct effect (top), or all.", "where"
    )
    top: int = parameter(integer(1), "20", "How many heads per emotion with screen=top.", "where")
    target_layer: Any


@dataclass(frozen=True, kw_only=True)
class HeadSettings(HeadFields, SweepSettings):
    """The settings of a sweep over heads, as it was asked for. `target_layer` is None for the last block."""

    target_layer: int | None = parameter(
        or_nothing(integer(0)), "", "The direct effect is on the stream after this block; default: the last.", "where"
    )

    def resolved(self, emotions: tuple[str, ...], n_layers: int) -> HeadConfig:
        """The settings for a model of that depth.

        Raises:
            UserError: for a layer that the model does not have, or a target before the heads' layers.
        """
        layers = resolve_layers(self.layers, n_layers)
        target = n_layers - 1 if self.target_layer is None else self.target_layer
        if not max(layers) <= target < n_layers:
            raise UserError(f"target_layer={target} is not from {max(layers)}, the last of the layers, to {n_layers - 1}")
        return HeadConfig(**vars(self) | self._known(emotions, layers) | {"target_layer": target})


@dataclass(frozen=True, kw_only=True)
class HeadConfig(HeadFields, SweepConfig):
    """The settings of a sweep over heads for one data set and one model."""

    target_layer: int


def make_config(profile: str = DEFAULT, given: Mapping[str, str | None] | None = None) -> SweepSettings:
    """The settings of a sweep: a profile's, with single parameters overridden; None and empty texts leave the profile's value.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    settings = SweepSettings(profile=profile, **_values(SweepSettings, profile, given or {}, PROFILES))
    if settings.directions != "fit" and settings.direction != "mean_diff":
        raise UserError(
            f"direction={settings.direction} chooses what is fitted, and directions={settings.directions} is fitted already: give one of them"
        )
    if settings.directions != "fit" and settings.pairs:
        raise UserError(f"pairs={settings.pairs} are to fit on, and directions={settings.directions} is fitted already: give one of them")
    if settings.instructions and "instruction" not in settings.arms:
        raise UserError(f"instructions={settings.instructions!r} needs arms=direction,instruction")
    if str(settings.shots) != table_of(SweepSettings)["shots"].default and "examples" not in settings.arms:
        raise UserError(f"shots={settings.shots} needs arms=direction,examples")
    check_form(settings)
    return settings


def make_head_config(profile: str = DEFAULT, given: Mapping[str, str | None] | None = None) -> HeadSettings:
    """The settings of a sweep over heads; a profile's scope is for directions, and does not count.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    settings = HeadSettings(profile=profile, **_values(HeadSettings, profile, given or {}, OF_HEADS))
    if "+" in settings.layers:
        raise UserError(f"layers={settings.layers!r} has bands, which are for directions: give single layers")
    check_form(settings)
    return settings


def _values(
    settings: type[SweepSettings], profile: str, given: Mapping[str, str | None], profiles: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    if profile not in profiles:
        raise UserError(f"unknown profile {profile!r}: choose one of {', '.join(profiles)}")
    values = read(table_of(settings), given, profiles[profile])
    if values["min_new_tokens"] is None:
        values["min_new_tokens"] = values["sequence_length"]
    if values["min_new_tokens"] > values["sequence_length"]:
        raise UserError(f"min_new_tokens={values['min_new_tokens']} is more than sequence_length={values['sequence_length']}")
    if values["samples_per_prompt"] > 1 and values["temperature"] == 0:
        raise UserError("samples_per_prompt above 1 needs temperature above 0: greedy samples are all the same")
    if values["ray_address"] != "local" and values["engine"] != "ray":
        raise UserError(f"ray_address={values['ray_address']!r} needs engine=ray")
    return values


HOW = frozenset(name for name, item in table_of(SweepSettings).items() if item.how)  # what may differ when a sweep is resumed


# What sweeps did that were made before there was the parameter.
BEFORE = {name: item.parse(item.before) for name, item in table_of(SweepSettings).items() if item.before is not None} | {"bands": ""}


def work_hash(config: SweepFields) -> str:
    """Identifies what a sweep computes, however and wherever it is run; a later parameter counts only if it is not as it was before."""
    counted = {name: value for name, value in asdict(config).items() if name != "profile" and name not in HOW}
    return digest({name: value for name, value in counted.items() if name not in BEFORE or value != BEFORE[name]})
