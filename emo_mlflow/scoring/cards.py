"""Scorer cards: what a classifier's outputs mean, where it comes from, and how the exported files are found."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from emo_mlflow.common.names import check_name, check_revision, file_stem, shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.scoring.agreement import Agreement, parse_agreements
from emo_mlflow.types import digest

Activation = Literal["softmax", "sigmoid", "identity"]

UNPADDED = -1
GRAPH, TOKENIZER, CARD = "model.onnx", "tokenizer.json", "card.yaml"
EMBEDDED = "embedded"
SETS = {"hub": ("roberta-sentiment", "polite-bert", "roberta-goemotions")}


@dataclass(frozen=True)
class Head:
    """One output of a graph.

    Attributes:
        name: the prefix of its metrics, `name.label`.
        output: the graph's output that it reads, float32 [batch, len(labels)].
        activation: softmax over exclusive labels, sigmoid for labels that may occur together, identity for a score;
            None where the classifier's own `problem_type` is to say, which a card that is run never has.
        temperature: what the logits are divided by before the activation.
        thresholds: the probability from which each label counts as present, by label; empty if unknown.
    """

    name: str
    labels: tuple[str, ...]
    activation: Activation | None = None
    output: str = "logits"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Card:
    """What is known of a scorer.

    Attributes:
        source: a hub id or a folder with a classifier's weights; what it was trained from, for the embedded scorer.
        revision: the hub's commit, or empty.
        max_length: tokens kept of a text, special tokens included.
        pad_id: the token id that padding has; some encoders count positions by it. -1 where no padding is without effect:
            then only texts of equal length share a batch.
        files: sha256 of each exported file; empty in a card that is not exported yet.
        quality: measured figures, as the exporter or the trainer wrote them.
        readers: how well its scores agree with readers on text that was written under intervention; empty if that was not measured.
        provenance: how the files were made: data hashes, seeds, versions, options.
    """

    name: str
    source: str
    heads: tuple[Head, ...]
    description: str = ""
    revision: str = ""
    licence: str = ""
    max_length: int = 512
    pad_id: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    readers: tuple[Agreement, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the columns, `head.label`, in the order of heads and labels."""
        return tuple(f"{head.name}.{label}" for head in self.heads for label in head.labels)

    @property
    def fingerprint(self) -> str:
        """Identifies everything that decides a score: the files, the heads, and the length that texts are cut to."""
        return digest([dict(self.files), [asdict(head) for head in self.heads], self.max_length, self.pad_id])

    @property
    def key(self) -> str:
        """Names the cache folder: equal for cards that ask for the same export."""
        heads = [[head.name, head.labels, head.activation, head.output] for head in self.heads]
        return f"{self.name}-{digest([self.source, self.revision, heads, self.max_length], 12)}"


def is_hub_id(source: str) -> bool:
    """Whether a text has the form owner/name."""
    return re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", source, re.ASCII) is not None


def source_key(source: str) -> str:
    """Names the cache folder of an export that was asked for by a folder or a hub id, without a card."""
    where = str(Path(source).resolve()) if Path(source).is_dir() else source
    return f"{file_stem(Path(where).name.lower())}-{digest(where, 12)}"


def builtin_cards() -> dict[str, Path]:
    """Paths of the cards that come with the package, by name."""
    folder = Path(str(files("emo_mlflow.evaluators"))) / "cards"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def embedded_folder() -> Path:
    """The folder of the scorer that comes with the package."""
    return Path(str(files("emo_mlflow.evaluators"))) / EMBEDDED


class _CardLoader(yaml.SafeLoader):
    """Plain data without aliases, with which a few lines can stand for more than a memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a card has no aliases (*name)")
        return super().compose_node(parent, index)


def load_card(path: Path) -> Card:
    """Reads and checks a card.

    Raises:
        UserError: the file is missing, is not YAML, has an unknown key, lacks one, or a value has the wrong type.
    """
    try:
        payload = _CardLoader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise UserError(f"cannot read the scorer card {path}: {reason_of(error)}") from None
    return parse_card(payload, str(path))


def parse_card(payload: Any, where: str) -> Card:
    """A mapping as YAML holds it -> a card. `where` names it in errors."""
    values = _checked(Card, payload, where)
    heads = values.get("heads")
    if not isinstance(heads, list) or not heads:
        raise UserError(f"{where}: heads must be a list with a name, labels and an activation each")
    parsed = tuple(_parse_head(head, f"{where}, head {i + 1}") for i, head in enumerate(heads))
    check_name(values["name"], f"{where}: name")
    if values.get("revision"):
        check_revision(values["revision"], f"{where}: revision")
    for name, mark in values.get("files", {}).items():
        if not isinstance(name, str) or not isinstance(mark, str):
            raise UserError(f"{where}: files must be names with a sha256 each, found {shown(name)}: {shown(mark)}")
    card = Card(**(values | {"heads": parsed, "readers": parse_agreements(values.get("readers", ()), where)}))
    duplicates = {metric for metric in card.metrics if card.metrics.count(metric) > 1}
    if duplicates:
        raise UserError(f"{where}: {', '.join(sorted(duplicates))} occurs more than once; give the heads other names")
    if card.max_length < 8:
        raise UserError(f"{where}: max_length {card.max_length} is too short; it needs at least 8 tokens")
    return card


def dump_card(card: Card) -> str:
    """The card as YAML, readable by `load_card`."""
    payload = {name: value for name, value in asdict(card).items() if value not in ("", {}, ())}
    payload["heads"] = [
        {k: list(v) if isinstance(v, tuple) else v for k, v in head.items() if v not in ((), None)}
        for head in payload["heads"]
    ]
    rows = [{k: v for k, v in row.items() if v is not None} for row in payload.pop("readers", ())]
    plain = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True, width=120)
    return f"{plain(payload)}{plain({'readers': rows}, default_flow_style=None) if rows else ''}"


def _parse_head(payload: Any, where: str) -> Head:
    values = _checked(Head, payload, where)
    for key, kind in (("labels", str), ("thresholds", (int, float))):
        if not isinstance(values.get(key, []), list) or not all(isinstance(x, kind) for x in values.get(key, [])):
            raise UserError(f"{where}: {key} must be a list of {'strings' if kind is str else 'numbers'}")
        values[key] = tuple(values.get(key, ()))
    for name in (values["name"], *values["labels"]):
        check_name(name, f"{where}: name or label")
    head = Head(**values)
    if not head.labels:
        raise UserError(f"{where}: labels must not be empty")
    if head.activation is not None and head.activation not in get_args(Activation):
        raise UserError(f"{where}: activation {head.activation!r} is not one of {', '.join(get_args(Activation))}")
    if head.activation == "softmax" and len(head.labels) == 1:
        raise UserError(
            f"{where}: a softmax over one label ({head.labels[0]}) is 1 for every text; "
            "say activation: sigmoid (a probability) or identity (the score as it is)"
        )
    if head.thresholds and len(head.thresholds) != len(head.labels):
        raise UserError(f"{where}: {len(head.thresholds)} thresholds for {len(head.labels)} labels")
    if not (head.temperature > 0 and math.isfinite(head.temperature)):
        raise UserError(f"{where}: temperature {head.temperature} is not a positive number")
    return head


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "Mapping[str, str]": dict,
    "Mapping[str, Any]": dict,
}


def _checked(cls: type[Card] | type[Head], payload: Any, where: str) -> dict[str, Any]:
    # By hand: pydantic is no shorter once its errors are worded as a line that names the file and says what the key may be.
    if not isinstance(payload, dict):
        raise UserError(f"{where}: expected keys and values, found {type(payload).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(map(str, set(payload) - set(known)))
    if unknown:
        raise UserError(f"{where}: unknown key {' '.join(', '.join(unknown).split())[:200]}; known are {', '.join(known)}")
    required = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in payload]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing")
    for name, value in payload.items():
        expected = _TYPES.get(str(known[name].type))
        if expected and (not isinstance(value, expected) or isinstance(value, bool)):
            raise UserError(f"{where}: {name} must be of type {known[name].type}, found {shown(value)}")
    return dict(payload)
