"""A model on the Hugging Face hub, or in its local cache: is it there, may it be read, and its folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from emo_mlflow.common.deadline import within
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models.weights import INDEX, SINGLE, chosen_files, count_parameters, read_headers

REQUEST_SECONDS = 4.0
DEADLINE_SECONDS = 8.0  # name resolution has no time limit of its own
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
NO_SUBFOLDERS = "*/*"


class _OutOfReachError(Exception):
    """The hub did not answer; the text says why."""


def check_hub(repo: str, revision: str | None) -> int | None:
    """Whether the weights can be had, answered within ten seconds.

    Returns:
        the number of parameters, as far as the hub says.

    Raises:
        UserError: if the hub does not have the model or does not give it to this user, or if the hub cannot be reached
            and the model is not in the cache.
    """
    try:
        info = _ask(repo, revision)
    except _OutOfReachError as error:
        return count_parameters(read_headers(_cached(repo, revision, str(error))))
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if not files & {SINGLE, INDEX}:
        raise UserError(f"{repo} has no {SINGLE} on the hub: only safetensors weights are read")
    return info.safetensors.total if info.safetensors else None


def hub_folder(repo: str, revision: str | None, weights: bool = True) -> Path:
    """The folder of the model in the hub's cache, downloaded if need be; its name is the commit.

    Args:
        weights: whether they are needed, or the small files alone.

    Raises:
        UserError: as `check_hub`, and if the download breaks off.
    """
    try:
        info = _ask(repo, revision)
    except _OutOfReachError as error:
        return _cached(repo, revision, str(error))
    try:
        folder = _snapshot(repo, revision, SMALL_FILES)
        if not weights:
            return folder
        there = {sibling.rfilename for sibling in info.siblings or ()}
        names = chosen_files(there, lambda: (folder / INDEX).read_text(encoding="utf-8"))
        return _snapshot(repo, revision, (*SMALL_FILES, *names))
    except UserError:
        raise
    except Exception as error:  # whose type depends on the HTTP library that the hub's client is built on
        reason = _explained(error, repo, revision)
        raise UserError(f"the download of {repo} broke off: {reason}; what came is kept, run it again") from None


def _snapshot(repo: str, revision: str | None, patterns: tuple[str, ...], offline: bool = False) -> Path:
    path = snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=[NO_SUBFOLDERS],
        local_files_only=offline,
    )
    return Path(path)


def _cached(repo: str, revision: str | None, reason: str) -> Path:
    missing = UserError(f"{repo} is not in the hub's cache, and {reason}")
    try:
        folder = _snapshot(repo, revision, SMALL_FILES, offline=True)
    except LocalEntryNotFoundError:
        raise missing from None
    if not any((folder / name).is_file() for name in (SINGLE, INDEX)):
        raise missing
    return folder


def _ask(repo: str, revision: str | None) -> ModelInfo:
    """What the hub says of a model that this user may read.

    Raises:
        _OutOfReachError: if it does not answer in time.
        UserError: if it says no.
    """

    def ask() -> ModelInfo:
        info = HfApi().model_info(repo, revision=revision, timeout=REQUEST_SECONDS)
        if info.gated:
            HfApi().auth_check(repo)
        return info

    try:
        return within(DEADLINE_SECONDS, ask)
    except Exception as error:  # whose type depends on the HTTP library that the hub's client is built on
        raise _explained(error, repo, revision) from None


def _explained(error: Exception, repo: str, revision: str | None) -> UserError | _OutOfReachError:
    """What an error of the hub's client means: no, or no answer."""
    if isinstance(error, GatedRepoError):
        return UserError(f"{repo} is gated: accept its licence on the hub's page, then `hf auth login`")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"the hub has no model {repo!r} (a private one needs `hf auth login`)")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision!r} on the hub")
    if isinstance(error, HFValidationError):
        return UserError(f"{repo!r} is not a hub id: {reason_of(error)}")
    if isinstance(error, TimeoutError):
        return _OutOfReachError(f"the hub did not answer within {DEADLINE_SECONDS:.0f} seconds")
    if isinstance(error, OfflineModeIsEnabled):
        return _OutOfReachError("HF_HUB_OFFLINE is set")
    if isinstance(error, HfHubHTTPError):
        return _OutOfReachError(f"the hub answered: {reason_of(error)}")
    return _OutOfReachError(f"the hub cannot be reached ({type(error).__name__}: {reason_of(error)})")

