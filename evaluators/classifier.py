"""A classifier in PyTorch: loaded, asked what it takes, scored without padding, and traced to a graph."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from emo_mlflow.evaluators.checkpoint import Checkpoint

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models.folder import why_no_tokenizer
from emo_mlflow.scoring.cards import TOKENIZER, UNPADDED, Card
from emo_mlflow.scoring.onnx import FOR_NOTHING
from emo_mlflow.types import FloatArray

_TASK, _TYPES = "text-classification", "token_type_ids"
_LONG = "so it goes "  # repeated, a text that fills every context
_SHORTEST = 8  # tokens; a card takes no fewer


@dataclass(frozen=True, eq=False)
class Classifier:
    """A checkpoint in PyTorch, float32.

    Attributes:
        model: transformers' sequence classifier, in evaluation mode.
        tokenizer: its own, a fast one.
        card: the checkpoint's, with the length that texts are cut to and the padding.
    """

    model: Any
    tokenizer: Any
    card: Card

    def probabilities(self, texts: Sequence[str]) -> FloatArray:
        """float32 [texts, labels], one text at a time and without padding, by the checkpoint's own tokenizer.

        Raises:
            UserError: if a text cannot be scored.
        """
        import torch

        head = self.card.heads[0]
        activations = {"softmax": lambda x: torch.softmax(x, -1), "sigmoid": torch.sigmoid, "identity": lambda x: x}
        rows = []
        for text in texts:
            try:
                logits = self._logits(text, self.card.max_length)
            except Exception as error:  # of whatever line of its code does not take the text
                raise UserError(f"{self.card.source} cannot score {text[:40]!r}: {reason_of(error)}") from None
            rows.append(activations[str(head.activation)](logits / head.temperature).numpy())
        return np.stack(rows).astype(np.float32)

    def save_tokenizer(self, path: Path) -> None:
        """Writes tokenizer.json, which says at which end texts are cut."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.enable_truncation(self.card.max_length, direction=self.tokenizer.truncation_side)
        backend.save(str(path / TOKENIZER))

    def takes(self, length: int) -> bool:
        """Whether a text of so many tokens can be scored."""
        try:
            self._logits(_LONG * length, length)
        except Exception:  # an index past a table of positions, or shapes that do not fit, as the family has it
            return False
        return True

    def gives_types(self) -> bool:
        """Whether the tokenizer gives the model token_type_ids."""
        return _TYPES in self.tokenizer("a") and _TYPES in inspect.signature(self.model.forward).parameters

    def types_matter(self) -> bool:
        """Whether a score is another without the token_type_ids that the tokenizer gives: GPT-2's, where a tokenizer gives any."""
        length = self.card.max_length
        return self.gives_types() and not self._logits(_LONG, length).equal(self._logits(_LONG, length, without=_TYPES))

    def _logits(self, text: str, max_length: int, without: str = "") -> Any:
        """float32 [labels]."""
        import torch

        accepted = inspect.signature(self.model.forward).parameters.keys() - {without}
        encoded = self.tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        if not encoded["input_ids"].shape[1]:
            encoded = self.tokenizer(FOR_NOTHING, return_tensors="pt")
        with torch.inference_mode():
            return self.model(**{name: value for name, value in encoded.items() if name in accepted}).logits[0]


def load_classifier(checkpoint: Checkpoint) -> Classifier:
    """A checkpoint's classifier, with its card completed by what it takes.

    Raises:
        UserError: it cannot be loaded, lacks weights, has no fast tokenizer, or takes no text.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    safe = any(name.endswith(".safetensors") for name in checkpoint.hashes)
    folder, source = checkpoint.folder, checkpoint.card.source
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype="float32",
            use_safetensors=safe,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a checkpoint can be wrong in as many ways as its readers have lines
        reason = why_no_tokenizer(folder, reason_of(error))
        raise UserError(f"{folder} cannot be loaded as a sequence classifier: {reason}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{source} is no trained sequence classifier: its weights lack {', '.join(missing[:3])}, "
            "which transformers would draw at random"
        )
    if not tokenizer.is_fast:
        raise UserError(f"{source} has no fast tokenizer, which scoring without transformers needs")
    model.eval()
    model.config.use_mems_eval = False  # XLNet's, an output that a classifier does not need
    pad = model.config.pad_token_id
    if pad is None:
        model.config.pad_token_id = UNPADDED  # decoders look for the last token before the padding
    fitting = Classifier(model, tokenizer, replace(checkpoint.card, pad_id=UNPADDED if pad is None else int(pad)))
    return replace(fitting, card=replace(fitting.card, max_length=_longest(fitting)))


def _longest(classifier: Classifier) -> int:
    """Tokens, special ones included, that a text is cut to: what the card, the tokenizer and the model all take."""
    config = classifier.model.config
    values = config.to_dict()
    names = (config.attribute_map.get("max_position_embeddings", "max_position_embeddings"), "max_seq_len")
    positions = next((values[name] for name in names if values.get(name)), classifier.card.max_length)
    longest = min(classifier.card.max_length, positions, classifier.tokenizer.model_max_length)
    if classifier.takes(longest):
        return int(longest)
    too_long = (
        longest  # encoders of RoBERTa's kind number positions from the padding's id on, so that some are never used
    )
    longest = _SHORTEST - 1
    while too_long - longest > 1:
        middle = (longest + too_long) // 2
        longest, too_long = (middle, too_long) if classifier.takes(middle) else (longest, middle)
    if longest < _SHORTEST:
        classifier.probabilities(["I thank you."])  # says why
        raise UserError(f"{classifier.card.source} takes fewer than {_SHORTEST} tokens")
    return longest


def trace(classifier: Classifier, folder: Path) -> None:
    """Writes the float32 graph to a folder by Optimum; a family that Optimum does not know is tried as BERT is exported.

    Raises:
        UserError: it cannot be traced.
    """
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.onnx.model_configs import BertOnnxConfig, DistilBertOnnxConfig
    from optimum.exporters.tasks import TasksManager

    model = classifier.model
    family = model.config.model_type
    known = _TASK in TasksManager._SUPPORTED_MODEL_TYPE.get(family, {}).get("onnx", {})
    own = None
    if not known or classifier.types_matter():
        base: Any = BertOnnxConfig if classifier.gives_types() else DistilBertOnnxConfig
        if known:
            made = TasksManager.get_exporter_config_constructor("onnx", model=model, task=_TASK)(model.config)
            base = type("WithTypes", (type(made),), {"inputs": BertOnnxConfig.inputs})
        own = {"model": base(model.config, task=_TASK)}
    try:
        onnx_export_from_model(model, folder, task=_TASK, do_validation=False, custom_onnx_configs=own)
    except Exception as error:  # of whatever line of a family's code cannot be traced
        raise UserError(
            f"Optimum cannot export a classifier of the type {family} to ONNX: {reason_of(error)}"
        ) from None
