"""A classifier's checkpoint: from a card, a hub id or a folder to files on disk and a card that is complete."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emo_mlflow.common.deadline import within
from emo_mlflow.common.files import sha256
from emo_mlflow.common.names import is_mark, of_word, shown
from emo_mlflow.errors import UserError
from emo_mlflow.models.folder import refuse_code
from emo_mlflow.scoring.cards import TOKENIZER, Activation, Card, Head, builtin_cards, is_hub_id, load_card, source_key
from emo_mlflow.types import WeightsFormat

HUB_SECONDS = 6.0  # so that the command, with its imports, says so within ten
_ACTIVATIONS: dict[str, Activation] = {
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
    "regression": "identity",
}
_ONLY_PICKLE = (
    "has no safetensors weights: a pickle (pytorch_model.bin) can run code and is read only if asked; if you trust "
    "where it comes from, export with --weights pickle, which uses PyTorch's restricted loader"
)
_LABEL_LENGTH = 60  # a metric joins a scorer, a label and an emotion
_PATTERNS = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Checkpoint:
    """A classifier's files.

    Attributes:
        folder: config, weights and tokenizer.
        card: complete but for what the export adds.
        key: the name of its folder in the cache, by which `load_scorers` finds it again.
        revision: the commit that the files are of; empty for a folder.
        hashes: sha256 by file name, of everything that decides the classifier.
    """

    folder: Path
    card: Card
    key: str
    revision: str
    hashes: Mapping[str, str]


def find_checkpoint(source: str, weights_format: WeightsFormat = "safetensors") -> Checkpoint:
    """A card's name or path, a folder, or a hub id -> the files, fetched where needed, and the completed card.

    Args:
        weights_format: pickle takes pytorch_model.bin where there are no safetensors.

    Raises:
        UserError: nothing of that name; no hub within ten seconds; labels or activation that contradict the checkpoint,
            or that neither it nor a card says; code of its own; weights as a pickle, unasked.
    """
    path = builtin_cards().get(source, Path(source))
    card = load_card(path) if path.is_file() else None
    weights = card.source if card else source
    if card and not Path(weights).is_absolute() and (path.parent / weights).is_dir():
        folder, revision = path.parent / weights, ""
    elif Path(weights).is_dir():
        folder, revision = Path(weights), ""
    elif is_hub_id(weights):
        folder = fetch(weights, (card.revision if card else "") or "main", weights_format)
        revision = folder.name
    else:
        names = ", ".join(builtin_cards())
        raise UserError(f"{source!r} is no card ({names}), no folder and no hub id (owner/name)")
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    config = _read_config(folder)
    refuse_code(folder, config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    hashes = _hashes(folder, weights_format)
    complete = complete_card(card or _card_from_config(source, folder, config), config)
    return Checkpoint(folder, complete, card.key if card else source_key(source), revision, hashes)


def fetch(hub_id: str, revision: str, weights_format: WeightsFormat = "safetensors") -> Path:
    """The snapshot of a hub repository, from the local cache where it is there; its folder is named by the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if re.fullmatch(r"[0-9a-f]{40}", revision):
        try:
            local = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
            if any(local.glob("*.safetensors")) or any(local.glob("*.bin")):
                return local
        except OSError:
            pass  # not in the local cache: ask the hub
    hint = "download it elsewhere and name its folder (instead of the id, or as source in a copy of its card)"
    try:
        commit, names = within(HUB_SECONDS, lambda: _ask_hub(hub_id, revision))
        pickled = not any(name.endswith(".safetensors") for name in names)
        if pickled and weights_format != "pickle":
            raise UserError(f"{hub_id} {_ONLY_PICKLE}")
        weights = "pytorch_model.bin" if pickled else "*.safetensors"
        return Path(snapshot_download(hub_id, revision=commit, allow_patterns=[*_PATTERNS, weights]))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"the hub has no {hub_id} at revision {revision} that you may read; {hint}") from None
    except (OSError, HfHubHTTPError) as error:
        raise UserError(f"the hub cannot be reached for {hub_id} ({type(error).__name__}): {hint}") from None


def _ask_hub(hub_id: str, revision: str) -> tuple[str, list[str]]:
    """A repository's commit and file names. Fetches its config too: a hub may answer about files that it does not give."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().model_info(hub_id, revision=revision, timeout=HUB_SECONDS / 2)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    if "config.json" in names:
        hf_hub_download(hub_id, "config.json", revision=info.sha, etag_timeout=HUB_SECONDS / 2)
    return str(info.sha), names


def complete_card(card: Card, config: Mapping[str, Any]) -> Card:
    """Checks a card against a checkpoint's config, and takes from it what the card leaves open.

    Raises:
        UserError: labels or activation contradict the config, or nobody says the activation.
    """
    if len(card.heads) != 1:
        raise UserError(f"the card of {card.name} has {len(card.heads)} heads; a sequence classifier has one output")
    head = card.heads[0]
    _check_labels(card, head, _labels(config))
    said = _ACTIVATIONS.get(str(config.get("problem_type")))
    if said == "softmax" and len(head.labels) == 1:
        said = None  # it would be 1 for every text: such a config is a mistake, and its card decides
    if head.activation is None and said is None:
        raise UserError(_which_activation(card.source, head.labels))
    if head.activation and said and head.activation != said:
        raise UserError(f"the card of {card.name} says {head.activation}, the checkpoint's problem_type says {said}")
    return replace(card, heads=(replace(head, activation=head.activation or said),))


def _which_activation(source: str, labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return (
            f"{source} has one label ({labels[0]}), over which a softmax is 1 for every text, and does not say what it gives. "
            "Write a card that says activation: sigmoid (a probability) or identity (the score as it is), and export that"
        )
    return (
        f"{source} has no problem_type: whether its labels exclude each other is not known. Write a card that says activation: "
        "softmax (exclusive labels), sigmoid (several may hold) or identity (scores as they are), and export that"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no readable config.json of a classifier: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is not a model's config")
    return config


def _card_from_config(source: str, folder: Path, config: Mapping[str, Any]) -> Card:
    name = re.sub(r"[^a-z0-9_]+", "_", Path(source).name.lower()).strip("_") or "scorer"
    labels = _labels(config)
    if not labels:
        raise UserError(f"{folder}: config.json has no id2label; write a card with the labels")
    return Card(name=name, source=source, heads=(Head(name, metric_labels(labels)),))


def _labels(config: Mapping[str, Any]) -> list[str]:
    by_id = config.get("id2label") or {}
    keys = [str(number) for number in range(len(by_id))]
    if not isinstance(by_id, dict) or set(keys) != set(by_id):
        raise UserError(f"config.json: id2label must name the labels 0, 1, ..., found {shown(by_id)}; write a card with the labels")
    return [str(by_id[key]) for key in keys]


def metric_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels as parts of metrics' names, all different: words in small letters with their marks, symbols by their Unicode names."""
    found: list[str] = []
    for number, label in enumerate(labels):
        name = _normal(label)[:_LABEL_LENGTH].strip("_") or f"label_{number}"
        found.append(f"{name}_{number}" if name in found else name)
    return tuple(found)


def _normal(label: str) -> str:
    """`Très joyeux!` -> `très_joyeux`; what has no letters is named: an emoji, `+` and `-`."""
    text = unicodedata.normalize("NFC", label.strip().lower())
    if not any(of_word(c) and not is_mark(c) for c in text):
        text = " ".join(unicodedata.name(c, "").lower() for c in text if not is_mark(c))
    return "_".join("".join(c if of_word(c) else " " for c in text).split())


def _check_labels(card: Card, head: Head, found: Sequence[str]) -> None:
    if not found or all(re.fullmatch(r"LABEL_\d+", label) for label in found):
        return  # the checkpoint names none; the graph's width is checked when it is loaded
    if [_normal(label) for label in found] != [_normal(label) for label in head.labels]:
        raise UserError(
            f"the card of {card.name} has the labels {', '.join(head.labels)}, but the checkpoint's are "
            f"{', '.join(found)}: pin another revision or correct the card"
        )


def _hashes(folder: Path, weights_format: WeightsFormat) -> dict[str, str]:
    names = {"config.json", TOKENIZER, "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json"}
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and weights_format == "pickle":
        weights = sorted(folder.glob("pytorch_model*.bin"))
    elif not weights and any(folder.glob("*.bin")):
        raise UserError(f"{folder} {_ONLY_PICKLE}")
    if not weights:
        raise UserError(f"{folder} holds no weights (*.safetensors or pytorch_model.bin)")
    others = [folder / name for name in sorted(names) if (folder / name).is_file()]
    return {path.name: sha256(path) for path in [*weights, *others]}
