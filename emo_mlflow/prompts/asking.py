"""What is put in front of a prompt where a model is asked for an emotion, instead of steered: an instruction, or a few texts of the emotion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from emo_mlflow.common.files import check_there
from emo_mlflow.common.names import HALF, same_name, shown
from emo_mlflow.errors import UserError
from emo_mlflow.types import Prompt, Template, digest

# By template: what a text that goes on would begin with, and what a person asks of an assistant.
INSTRUCTIONS: Mapping[Template, Mapping[str, str]] = {
    "none": {
        "gratitude": "The following text is full of gratitude: somebody says thank you and means it.",
        "anger": "The following text is full of anger: somebody is furious and says so.",
        "apology": "The following text is an apology: somebody says sorry and means it.",
    },
    "chat": {
        "gratitude": "Answer with gratitude: say thank you, and mean it.",
        "anger": "Answer with anger: be furious, and say so.",
        "apology": "Answer with an apology: say sorry, and mean it.",
    },
}
ANY_EMOTION: Mapping[Template, str] = {"none": "The following text is full of {emotion}.", "chat": "Answer in a way that expresses {emotion}."}
BETWEEN = "\n\n"


def instructions(file: str, emotions: Sequence[str], template: Template) -> dict[str, str]:
    """An instruction for each emotion: the user's, where the file has one, or the one that is built in.

    Args:
        file: a JSON file, {"gratitude": "Answer with gratitude.", ...}; empty for none.

    Raises:
        UserError: if it is not there, holds something else, or speaks of an emotion that is not swept.
    """
    own = _read(file) if file else {}
    spelled = {same_name(name): name for name in emotions}
    if unknown := [name for name in own if same_name(name) not in spelled]:
        raise UserError(f"instructions={file!r} has one for {unknown[0]!r}, which is not swept: there are {', '.join(emotions)}")
    given = {spelled[same_name(name)]: text for name, text in own.items()}
    built_in = INSTRUCTIONS[template]
    return {name: given.get(name) or built_in.get(same_name(name)) or ANY_EMOTION[template].format(emotion=name) for name in emotions}


def _read(file: str) -> dict[str, str]:
    check_there(Path(file), "instructions")
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise UserError(f"instructions={file!r} is no JSON in UTF-8: {shown(str(error))}") from None
    # An object is a tuple of pairs here: of a name that comes twice, a dictionary would keep the last.
    if not isinstance(found, tuple) or not found or not all(isinstance(text, str) and text.strip() for _, text in found):
        raise UserError(f'instructions={file!r} must be a text for each emotion that is named in it, as in {{"gratitude": "Answer with gratitude."}}')
    if len({same_name(name) for name, _ in found}) < len(found):
        raise UserError(f"instructions={file!r} names an emotion twice")
    if halved := [name for name, text in found if HALF.search(text)]:
        raise UserError(f"instructions={file!r}: the one for {halved[0]!r} holds half a character (a lone surrogate)")
    return {name: text.strip() for name, text in found}


def examples(fit: Sequence[Prompt], emotions: Sequence[str], shots: int, seed: int) -> dict[str, str]:
    """A few texts of each emotion, drawn from those that directions are fitted on; never one that is to be continued.

    Raises:
        UserError: if an emotion has fewer.
    """
    found = {}
    for emotion in emotions:
        texts = sorted({prompt.text.strip() for prompt in fit if same_name(prompt.emotion) == same_name(emotion)})
        if len(texts) < shots:
            raise UserError(f"shots={shots} is more than the {len(texts)} texts of {emotion!r} that directions are fitted on")
        found[emotion] = BETWEEN.join(Random(digest([seed, emotion, "shots"], 16)).sample(texts, shots))
    return found
