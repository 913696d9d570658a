"""What can be done to a residual stream or to a head, a file per operation. Start at `declaration` for what each says of itself.

Nothing here needs torch: comparisons and reports read it too.
"""

from __future__ import annotations

from emo_mlflow.errors import UserError
from emo_mlflow.steering.operations.add import ADD
from emo_mlflow.steering.operations.add_keep_norm import ADD_KEEP_NORM
from emo_mlflow.steering.operations.clamp import CLAMP
from emo_mlflow.steering.operations.declaration import HeadReplacement, StreamEdit
from emo_mlflow.steering.operations.mean import MEAN
from emo_mlflow.steering.operations.patch import PATCH
from emo_mlflow.steering.operations.project_out import PROJECT_OUT
from emo_mlflow.steering.operations.restore import RESTORE
from emo_mlflow.steering.operations.zero import ZERO

STREAM_EDITS: dict[str, StreamEdit] = {item.name: item for item in (ADD, PROJECT_OUT, CLAMP, ADD_KEEP_NORM)}
HEAD_REPLACEMENTS: dict[str, HeadReplacement] = {item.name: item for item in (ZERO, MEAN, PATCH, RESTORE)}


def operation(name: str) -> StreamEdit | HeadReplacement:
    """What an operation declares, by its name in settings.

    Raises:
        UserError: for a name that there is not, as in a sweep of a later version.
    """
    found = STREAM_EDITS.get(name) or HEAD_REPLACEMENTS.get(name)
    if found is None:
        known = ", ".join((*STREAM_EDITS, *HEAD_REPLACEMENTS))
        raise UserError(f"unknown operation {name!r}: this version of emo_mlflow has {known}")
    return found
