"""The data that the parts of the package hand to each other: frozen, typed, and free of behaviour."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:  # the command line reads these types, and does not wait for numpy
    import numpy as np
    import numpy.typing as npt

Role = Literal["fit", "test"]
Kind = Literal["baseline", "emotion", "random", "instruction", "examples"]
Asking = Literal["instruction", "examples"]
Scope = Literal["window", "generated", "all", "prompt", "first"]
Site = Literal["resid_pre", "resid_post"]
Operation = Literal["add", "project_out", "clamp", "add_keep_norm"]
AlphaUnit = Literal["vector", "residual", "kl"]
Control = Literal["isotropic", "covariance", "shuffled"]
Aggregation = Literal["mean", "last", "attention"]
HeadOperation = Literal["zero", "mean", "patch", "restore"]
Screen = Literal["top", "all"]
Template = Literal["none", "chat"]
FitOn = Literal["response", "text", "last"]
MapKind = Literal["procrustes", "ridge"]
Pairing = Literal["word", "text"]
VectorFormat = Literal["gguf", "lm-eval", "safetensors"]
Likelihoods = Literal["few", "all", "none"]
Precision = Literal["float32", "int8"]
WeightsFormat = Literal["safetensors", "pickle"]

ASKING: tuple[Asking, ...] = get_args(Asking)  # kinds of conditions that edit nothing and put something in front of the prompt
NEGATIVE = " (negative)"  # behind an emotion's name, which has no brackets: the texts that its pairs contrast it with
FEW_DRAWS = 5  # random directions of a condition whose texts are known well enough to say how broken such texts are
N_BOOTSTRAP = 2000  # resamples behind an interval over prompts, unless another number is asked for

FloatArray: TypeAlias = "npt.NDArray[np.float32]"
Tokens = tuple[int, ...]
Turns = tuple[tuple[str, str], ...]  # of a conversation, in order: the role of who speaks, and what is said
Say = Callable[[str], None]  # prints a line for the person at the keyboard


def digest(payload: Any, length: int = 16) -> str:
    """Hex digest of anything JSON can hold, equal on every machine and in every process."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Prompt:
    """A text with the emotion that it expresses, and whether directions are fitted or tested on it.

    Attributes:
        text: of a conversation, what the last turn says: a user's of one to continue, the assistant's of one to fit on.
        before: of a conversation, its turns before that; None for a text.
    """

    text: str
    emotion: str
    role: Role
    before: Turns | None = None

    @cached_property
    def prompt_id(self) -> str:
        """Identifies the text alone, and what was said before it, so that sweeps of different models pair their prompts."""
        return digest([self.text, *self.before] if self.before else self.text, 12)


@dataclass(frozen=True)
class FitTexts:
    """Texts that directions are fitted on.

    Attributes:
        tokens: of each text; the first is never measured, since it is an attention sink.
        first: of each text, the position from which on its tokens are measured.
    """

    tokens: tuple[Tokens, ...]
    first: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False)
class Direction:
    """What is injected for one emotion, at every layer.

    Attributes:
        emotion: the name that the direction carries through the sweep.
        site: where the residual stream was measured, and where it is injected.
        vectors: float32 [n_layers, d_model], the difference of means in the residual stream's own units.
        basis: float32 [n_layers, k, d_model], orthonormal rows, for a subspace; None for a single vector.
    """

    emotion: str
    site: Site
    vectors: FloatArray
    basis: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Fit:
    """Directions that were fitted, or read from a file.

    Attributes:
        directions: by emotion.
        residual_norms: float32 [n_layers], the mean norm of the residual stream at the site, over texts and their tokens.
        accuracy: by emotion, float32 [n_layers]: how well the projection on the direction tells the emotion's texts from the
            reference's when each text is judged by a direction and a threshold fitted without its fold of the texts.
    """

    directions: dict[str, Direction]
    residual_norms: FloatArray
    accuracy: dict[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True)
class Edit:
    """One of several edits of a condition: an emotion's direction at a layer, by `weight` times the condition's alpha."""

    emotion: str
    layer: int
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.emotion}@{self.layer}*{self.weight:.12g}"  # names have neither of these signs

    @classmethod
    def read(cls, text: str) -> Edit:
        """What `str` wrote."""
        emotion, _, rest = text.partition("@")
        layer, _, weight = rest.partition("*")
        return cls(emotion, int(layer), float(weight))


# Of a condition, in the version that the first ids are from. Nothing is ever added here.
FIRST_FIELDS = frozenset(
    ("kind", "emotion", "layer", "alpha", "draw", "seed", "scope", "patch_window", "site", "operation", "alpha_unit", "alpha_schedule")
)


@dataclass(frozen=True)
class Condition:
    """One setting of the intervention; the baseline has none.

    Attributes:
        emotion: the emotion whose direction is injected, or which a random control controls for.
        layer: the block whose residual stream is changed, or whose head is replaced.
        alpha: strength, in units of `alpha_unit`.
        draw: which random direction, or which randomly drawn head, 0..R-1, for a random control.
        seed: what random directions are drawn from; None unless random.
        head: the head that is replaced; None for a direction.
        edits: what is done where it is more than one edit, each as `str(Edit)`, separated by semicolons; emotion and layer are then a name for all
            of them and the first layer.
        control: the kind of random direction; None for one that is drawn anew at every layer, with the norm of the direction.
        front: what stands in front of every prompt, of a condition that asks for the emotion instead of steering.
    """

    kind: Kind
    emotion: str | None = None
    layer: int | None = None
    alpha: float | None = None
    draw: int | None = None
    seed: int | None = None
    scope: Scope = "window"
    patch_window: int | None = None
    site: Site = "resid_pre"
    operation: Operation | HeadOperation = "add"
    alpha_unit: AlphaUnit = "vector"
    alpha_schedule: str = "constant"
    head: int | None = None
    control: Control | None = None
    edits: str = ""
    front: str = ""

    @property
    def steers(self) -> bool:
        """Whether anything is edited."""
        return self.kind in ("emotion", "random")

    @property
    def every_edit(self) -> tuple[Edit, ...]:
        """One, or those that `edits` names, in their order."""
        if not self.edits:
            return (Edit(*self.place),)
        return tuple(Edit.read(part) for part in self.edits.split(";"))

    @property
    def place(self) -> tuple[str, int]:
        """Emotion and layer, which every condition but the baseline has."""
        assert self.emotion is not None and self.layer is not None
        return self.emotion, self.layer

    @cached_property
    def condition_id(self) -> str:
        """A hash of what defines the condition and of nothing else, so that sweeps resume and join.

        A field that is not among the first ones counts only where it is not at its default, so that ids survive new fields.
        """
        if self.kind == "baseline":
            return digest({"kind": "baseline"}, 12)
        defaults = {item.name: item.default for item in fields(self) if item.name not in FIRST_FIELDS}
        given = {name: value for name, value in asdict(self).items() if name not in defaults or value != defaults[name]}
        return digest(given, 12)


@dataclass(frozen=True)
class Cell:
    """The smallest piece of work: one condition, one prompt, one sample."""

    condition_id: str
    prompt_id: str
    sample: int


@dataclass(frozen=True)
class Completion:
    """What a cell produced.

    Attributes:
        completion: the new text alone, without the prompt.
        n_tokens: new tokens, the end-of-sequence token not counted.
        nll: mean negative log-likelihood per new token (nats) under the unpatched model; NaN without tokens.
        nll_sd: standard deviation of the tokens' negative log-likelihoods (nats); NaN where nll is.
        distinct_2: distinct token bigrams over all token bigrams of the completion; NaN below two tokens.
        n_patched: positions of this cell at which the residual stream was changed.
        failure: why there is no completion, or None.
    """

    cell: Cell
    completion: str
    n_tokens: int
    nll: float
    nll_sd: float
    distinct_2: float
    n_patched: int
    failure: str | None = None
