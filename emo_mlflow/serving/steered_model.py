"""A base model with one condition of a sweep built in: prompts in, the texts out that the sweep would have had for them.

Knows nothing of MLflow. A steered model is a folder: `steered.json` (settings), `direction.safetensors` (what is injected), and perhaps
`base/`, the base model's own files; without them the base model is found by reference, and its fingerprint decides whether it is the one.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emo_mlflow import __version__
from emo_mlflow.common.machine import pick_device
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import end_tokens
from emo_mlflow.models.gguf_files import gguf_folder
from emo_mlflow.models.hub import SMALL_FILES, hub_folder
from emo_mlflow.models.loading import LoadedModel, load
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.tokens import encode_prompts, text_decoder
from emo_mlflow.models.weights import INDEX, SINGLE, weight_files
from emo_mlflow.prompts.selection import REFERENCE
from emo_mlflow.serving.call_options import AS_RECORDED, Options
from emo_mlflow.settings.templates import Form
from emo_mlflow.steering.edits import at_dose, make_patch
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.steering.strength import budget_meter, find_strengths
from emo_mlflow.sweeping.grid import noise_seed
from emo_mlflow.types import Cell, Condition, FloatArray, Prompt, Template, digest

ARTIFACT = "steered"  # the folder in a logged model
SETTINGS, DIRECTION, BASE = "steered.json", "direction.safetensors", "base"
RECORDED = "recorded"  # the base model that the sweep ran on


@dataclass(frozen=True)
class GenerationDefaults:
    """How texts are written, as in the sweep: the defaults of each call."""

    sequence_length: int
    min_new_tokens: int
    temperature: float
    seed: int
    prepend_bos: bool
    dtype: str
    template: Template = "none"
    system: str = ""

    @property
    def form(self) -> Form:
        """How prompts become tokens; nothing is fitted here."""
        return Form(self.template, self.system, self.prepend_bos)


@dataclass(frozen=True)
class Settings:
    """What a steered model is, apart from its direction.

    Attributes:
        model: the base model.
        fingerprint: of the base model (models.LoadedModel).
        condition: the intervention.
        residual_norm: mean norm of the residual stream at the condition's layer and site, which `alpha_unit=residual` refers to.
        sweep: id of the run that it comes from.
        dose: what the sweep multiplied the direction by, where `alpha_unit=kl` and the sweep ran this condition.
    """

    model: ModelSpec
    fingerprint: str
    condition: Condition
    residual_norm: float
    generation: GenerationDefaults
    sweep: str
    dose: float | None = None


class SteeredModel:
    """A loaded base model that writes under one intervention."""

    def __init__(self, settings: Settings, vector: FloatArray, basis: FloatArray | None, loaded: LoadedModel) -> None:
        self.settings = settings
        self.loaded = loaded
        self._vector, self._basis = vector, basis
        self._stack = BlockStack(loaded.model)
        self.lock = threading.Lock()  # the blocks of a model have one caller at a time
        self._doses = {} if settings.dose is None else {settings.condition.alpha: settings.dose}

    def complete(self, prompts: Sequence[str], options: Options = AS_RECORDED) -> list[str]:
        """Continues each prompt; the prompt itself is not part of the answer.

        The i-th occurrence of a prompt in one call is its sample i, as in the sweep: equal prompts differ if, and only if, temperature
        is above 0.

        Raises:
            UserError: naming the prompt that is empty, no text, or too long, or an option that breaks the text.
        """
        rows, engine = self.rows(prompts, options)
        with self.lock:
            done = {item.cell: item for pack in engine.generate(list({row.cell: row for row in rows}.values())) for item in pack}
        for i, row in enumerate(rows):
            if done[row.cell].failure is not None:
                raise UserError(f"prompt {i} has no text: {done[row.cell].failure}")
        return [done[row.cell].completion for row in rows]

    def rows(self, prompts: Sequence[str], options: Options) -> tuple[list[Row], Engine]:
        """A row per prompt, equal ones for equal cells, and the engine to write them with.

        Raises:
            UserError: as `complete`.
        """
        generation = self.settings.generation
        n_steps = generation.sequence_length if options.max_new_tokens is None else options.max_new_tokens
        temperature = generation.temperature if options.temperature is None else options.temperature
        seed = generation.seed if options.seed is None else options.seed
        condition = self.settings.condition
        if options.alpha is not None:
            condition = replace(condition, alpha=options.alpha)
        _check_texts(prompts)
        tokens = encode_prompts(self.loaded, [Prompt(prompt, REFERENCE, "test") for prompt in prompts], generation.form)
        for i, ids in enumerate(tokens):
            if len(ids) + n_steps > self.loaded.context:
                raise UserError(
                    f"prompt {i} has {len(ids)} tokens; with {n_steps} new ones it does not fit the model's context of "
                    f"{self.loaded.context}: shorten it or max_new_tokens"
                )
        if condition.alpha_unit == "kl" and prompts:
            condition = at_dose(condition, self._dose(condition))
        patch = make_patch(condition, self._vector, self._basis, self.settings.residual_norm, n_steps) if prompts else None
        cells = _cells(condition, prompts, sampled=temperature > 0)
        rows = [Row(cell, ids, patch, noise_seed(seed, cell.prompt_id, cell.sample)) for cell, ids in zip(cells, tokens, strict=True)]
        ends, absent = end_tokens(self.loaded, generation.form), self.loaded.absent_ids
        decoding = Decoding(n_steps, min(generation.min_new_tokens, n_steps), temperature, ends, absent)
        with self.lock:
            self._stack.check_lengths({len(ids) for ids in tokens}, n_steps)
        return rows, Engine(self._stack, decoding, text_decoder(self.loaded))


    def _dose(self, condition: Condition) -> float:
        """What does the damage that alpha says, found once for each alpha."""
        patch = make_patch(at_dose(condition, 1.0), self._vector, self._basis, self.settings.residual_norm, 1)
        with self.lock:
            if condition.alpha not in self._doses:
                meter = budget_meter(self.loaded, self._stack, [patch.boundary], self.settings.generation.prepend_bos)
                self._doses[condition.alpha] = float(find_strengths(meter, [patch], [float(condition.alpha or 0)]).alpha[0])
            return self._doses[condition.alpha]


def _check_texts(prompts: Sequence[str]) -> None:
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(f"prompt {i} is {prompt!r} and not a text")
        if not prompt.strip():
            raise UserError(f"prompt {i} is empty: give a text to continue")


def _cells(condition: Condition, prompts: Sequence[str], sampled: bool) -> list[Cell]:
    seen: Counter[str] = Counter()
    cells = []
    for prompt in prompts:
        cells.append(Cell(condition.condition_id, digest(prompt, 12), seen[prompt] if sampled else 0))
        seen[prompt] += 1
    return cells


def save_steered(
    folder: Path, settings: Settings, vector: FloatArray, basis: FloatArray | None, include_weights: bool
) -> None:
    """Writes a steered model into an existing folder; with weights, the base model's files are copied.

    Raises:
        UserError: if weights are to be included and are not to be had.
    """
    payload = {"emo_mlflow": __version__, **asdict(settings)}
    (folder / SETTINGS).write_text(json.dumps(payload, indent=1), encoding="utf-8")
    tensors = {"vector": np.ascontiguousarray(vector)}
    if basis is not None:
        tensors["basis"] = np.ascontiguousarray(basis)
    save_file(tensors, str(folder / DIRECTION))
    if include_weights:
        (folder / BASE).mkdir()
        for path in base_files(base_folder(settings.model)):
            shutil.copyfile(path, folder / BASE / path.name)


def base_folder(spec: ModelSpec) -> Path:
    """The folder that holds a model's files, fetched first if need be."""
    if spec.source == "embedded":
        from emo_mlflow.models.embedded import prepare

        return prepare()
    if spec.source == "gguf":
        return gguf_folder(Path(spec.location))
    return hub_folder(spec.location, spec.revision) if spec.source == "hub" else Path(spec.location)


def base_files(source: Path) -> list[Path]:
    """Configuration, tokenizer and the safetensors that are loaded, alone: whatever else lies in the folder stays there."""
    weights = weight_files(source)
    small = {path for pattern in SMALL_FILES for path in source.glob(pattern) if path.name != INDEX}
    return [*sorted(small), *([] if [path.name for path in weights] == [SINGLE] else [source / INDEX]), *weights]


def load_steered(folder: Path, base_model: str = RECORDED, device: str = "auto") -> SteeredModel:
    """Reads what `save_steered` wrote, and loads the base model.

    Args:
        base_model: another name or folder of the same base model, for where the recorded one is not to be had.
        device: as for a sweep.

    Raises:
        UserError: if a file is damaged, or the base model is missing or another one; the message says what to do.
    """
    settings, vector, basis = _read(folder)
    included = (folder / BASE).is_dir() and base_model == RECORDED
    dtype: torch.dtype = getattr(torch, settings.generation.dtype)
    try:
        if included:
            spec = ModelSpec(settings.model.name, "folder", str(folder / BASE))
        else:
            spec = settings.model if base_model == RECORDED else resolve(base_model)
        loaded = load(spec, pick_device(device), dtype)
    except UserError as error:
        raise _advice(settings, str(error)) if not included else error from None
    if loaded.fingerprint != settings.fingerprint:
        raise _advice(
            settings,
            f"{spec.location} holds another model (fingerprint {loaded.fingerprint[:12]}, not {settings.fingerprint[:12]})",
        )
    return SteeredModel(settings, vector, basis, loaded)


def _advice(settings: Settings, problem: str) -> UserError:
    where = settings.model.location + (f"@{settings.model.revision}" if settings.model.revision else "")
    return UserError(
        f"this steered model refers to its base model {settings.model.name!r} ({settings.model.source}: {where}), which cannot be "
        f'used: {problem}. Put it back, name a copy with model_config={{"base_model": "/folder"}} of mlflow.pyfunc.load_model '
        "(SERVING_MODEL_CONFIG in the environment of mlflow models serve), or log the model again with --include-weights"
    )


def _read(folder: Path) -> tuple[Settings, FloatArray, FloatArray | None]:
    make: Mapping[str, Callable[..., Any]] = {"model": ModelSpec, "condition": Condition, "generation": GenerationDefaults}
    try:
        payload = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        version = payload.pop("emo_mlflow")
        tensors = load_file(folder / DIRECTION)
        vector, basis = tensors["vector"], tensors.get("basis")
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no steered model that can be read ({error}): log it again") from None
    try:
        settings = Settings(**{name: make[name](**value) if name in make else value for name, value in payload.items()})
    except TypeError as error:
        raise UserError(
            f"{folder / SETTINGS} was written by emo_mlflow {version}, this is {__version__}: install that one ({error})"
        ) from None
    return settings, vector, basis
