"""What files of vectors say of the model that they are for, so that other tools inject at the right place and read the same tokens."""

from __future__ import annotations

from pathlib import Path

from emo_mlflow.models.families import identity_of
from emo_mlflow.models.loading import LoadedModel

IDENTITY = ("model_type", "blocks", "model_name", "document_start", "document_start_by")


def identity(loaded: LoadedModel) -> dict[str, str]:
    """Type, where its blocks are, name, the document-start token as text (empty: none), and whether its tokenizer writes that by itself."""
    start = loaded.document_start_id
    by_itself = loaded.tokenizer("a").input_ids[:1] == [start]
    return {
        **identity_of(loaded.model),
        "model_name": Path(loaded.spec.name).name,
        "document_start": "" if start is None else str(loaded.tokenizer.convert_ids_to_tokens(start)),
        "document_start_by": "tokenizer" if by_itself else "text",
    }
