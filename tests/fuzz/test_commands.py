"""Random parameters for every command: it works, or ends with one clear line and an exit code that is not zero.

Options are taken from the commands themselves, so a new one is fuzzed as soon as it is there. A few cases each here; many with EMO_MLFLOW_FUZZ in
the environment. Texts are not generated: what a sweep says before that is what is asked for.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hostile import CASES, NAMES
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from places import write_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import find_sweeps
from emo_mlflow.cli.main import main
from emo_mlflow.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS = 30
EMOTIONS = ("joy", "fear", "neutral")
NUMBERS = ("0", "1", "2", "-1", "3.5", "1e308", "-1e-320", "nan", "inf", "1" * 30, "9" * 5000, "0x10", "1_000", "٣", "+1", " 1", "1 ", "1,2", "")
LISTS = (",", "a,,b", "0-1", "1-0", "0-99999999999", "all/0", "all/2", "0,0", "joy", "joy,joy", "neutral", "all", "none", "auto", "true", "False")
CODES = {0, 2}
EXITS = {"doctor": {0, 1, 2}}  # 1: a default sweep cannot run here
# Not drawn: what would start a cluster, fetch something large, or work for minutes because it was told to.
NEVER = {"engine": {"ray"}, "model": {"", "smollm2-135m"}, "model_a": {"", "smollm2-135m"}, "model_b": {"", "smollm2-135m"}}
# Options whose value is a place to write: the test may not write elsewhere, a user may.
PLACES = ("out", "tracking_uri", "experiment")


def bases(world: Path) -> dict[str, list[str]]:
    """Of every command, arguments with which it works on what is in `world`."""
    store = ["--tracking-uri", f"sqlite:///{world}/store.db"]
    model = ["--model", str(world / "model")]
    data = ["--dataset", str(world / "data.jsonl")]
    run_id = (world / "run_id").read_text()
    return {
        "sweep": sweep_arguments(world),
        "study": [
            *model, *data, "--scorers", str(world / "scorer"), "--max-samples", "6", "--sequence-length", "2", "--alpha", "1",
            "--alpha-unit", "vector", "--controls", "isotropic", "--device", "cpu", *store,
        ],
        "compare": ["--runs", run_id, "--n-bootstrap", "100", *store],
        "export-legacy": ["--run-id", run_id, "--out", "legacy", "--tracking-uri", store[1]],
        "train-scorer": ["--data", str(world / "corpora"), "--out", "trained"],
        "export": ["--scorer", str(world / "scorer")],
        "log-model": ["--run-id", run_id, "--emotion", "joy", *store],
        "doctor": ["--tracking-uri", store[1]],
        "upload": [run_id],
        "steer": ["The train leaves", *model, *data, "--emotion", "joy", "--layer", "1", "--max-new-tokens", "2", "--device", "cpu"],
        "label": [run_id, "--n", "4", "--out", "made.csv", "--tracking-uri", store[1]],
        "agree": [str(world / "rubbish"), "--run-id", run_id, "--tracking-uri", store[1]],
        "vectors": [*model, *data, "--components", "1", "--n-bootstrap", "2", "--device", "cpu", *store],
        "align": ["--model-a", model[1], "--model-b", model[1], *data, "--device", "cpu", *store],
        "heads": ["--scorers", str(world / "scorer"), "--max-samples", "2", "--sequence-length", "2", "--device", "cpu", *model, *data, *store],
        "export-vectors": ["--directions", run_id, "--emotion", "joy", "--out", "made.gguf", "--layers", "1", "--model-type", "gpt2", *store],
        "import-vectors": ["--source", str(world / "rubbish"), "--out", "made.safetensors", *model],
    }


def sweep_arguments(world: Path) -> list[str]:
    """A sweep of a second."""
    return [
        "--model", str(world / "model"), "--dataset", str(world / "data.jsonl"), "--scorers", str(world / "scorer"), "--layers", "0",
        "--alphas", "1", "--sequence-length", "2", "--max-samples", "2", "--num-random", "1", "--device", "cpu", "--emotions", "joy",
        "--tracking-uri", f"sqlite:///{world}/store.db",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, a scorer, a data set, a store with a finished sweep, and files that are something else."""
    world = tmp_path_factory.mktemp("fuzz") / "world"
    (world / "work").mkdir(parents=True)
    save_tiny(world / "model", "gpt2", n_layers=2, d_model=16)
    write_scorer(world / "scorer")
    write_texts(world, EMOTIONS, 6)
    (world / "corpora").mkdir()
    (world / "rubbish").write_bytes(bytes(range(256)))
    (world / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EMO_MLFLOW_CACHE": str(world / "cache"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(world / "hf")}.items():
            patch.setenv(name, value)
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.chdir(world / "work")
        done = CliRunner().invoke(main, ["sweep", *sweep_arguments(world)])
        assert done.exit_code == 0, done.output
        (world / "run_id").write_text(find_sweeps(tracking_uri=f"sqlite:///{world}/store.db")["run_id"].iloc[0])
        yield world


@pytest.fixture(autouse=True)
def nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a sweep where the work begins."""

    def stop(*_: object, **__: object) -> None:
        raise UserError("enough")

    monkeypatch.setattr("emo_mlflow.steering.engine.Engine.generate", stop)


def values(option: click.Parameter, world: Path) -> st.SearchStrategy[str]:
    """Words for an option: good ones, ones that look good, and hostile ones."""
    name = str(option.name)
    files = [str(world / part) for part in ("data.jsonl", "rubbish", "empty", "scorer", "model", "model/model.safetensors", "absent", "store.db")]
    names = [word for word in NAMES if "\x00" not in word]
    if name in PLACES:
        names = [word for word in names if not any(part in word for part in ("/", "\\", "..", "~", ":")) and word.strip()]
        files = [str(world / "work" / part) for part in ("made", "made/deeper")]
    pools = [list(NUMBERS), list(LISTS), names, files]
    if isinstance(option.type, click.Choice):
        pools.append([str(choice) for choice in option.type.choices] * 3)
    drawn = st.one_of(*[st.sampled_from(pool) for pool in pools], st.text(max_size=12).filter(lambda text: "\x00" not in text))
    if name in PLACES:
        drawn = st.one_of(st.sampled_from(names), st.sampled_from(files))
    return drawn.filter(lambda word: word not in NEVER.get(name, ()))


@st.composite
def words(draw: st.DrawFn, command: click.Command, base: list[str], world: Path) -> list[str]:
    """The base's arguments with up to three options given, again or for the first time, and now and then one left out."""
    given_words = list(base)
    if given_words and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(given_words) - 1))
        if not given_words[max(0, at - 1)].startswith("--model") and not given_words[at].startswith("--model"):  # else the embedded one is loaded
            del given_words[at]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for option in draw(st.lists(st.sampled_from(options), max_size=3, unique_by=lambda option: option.name)) if options else []:
        if option.is_flag:
            given_words.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
        else:
            given_words.append(f"{option.opts[0]}={draw(values(option, world))}")
    if draw(st.integers(0, 9)) == 0:
        given_words.append(draw(st.sampled_from([word for word in NAMES if "\x00" not in word])))
    return given_words


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Fails what takes longer, where the system has alarms."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"nothing after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_clear(result: Result, allowed: set[int]) -> None:
    """A result, or a clear error."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError("".join(traceback.format_exception(result.exception))) from result.exception
    assert result.exit_code in allowed
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        errors = [line for line in result.output.splitlines() if line.startswith(("Error: ", "Usage: "))]
        assert errors, result.output
        assert all(len(line) < 8000 for line in errors)


def test_every_command_is_here(world):
    """Guards: a new command that is not fuzzed. Give `bases` the arguments with which it works."""
    assert set(main.commands) <= set(bases(world))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_any_parameters_get_a_clear_answer(name, world):
    """Guards: tracebacks for slips of the keyboard, exit code 0 for what was not done, work that never ends, and files outside the folder."""
    command, base = main.commands[name], bases(world)[name]
    before = set(world.parent.iterdir()) | set(world.iterdir())

    @settings(
        max_examples=CASES // 10 or 5,
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, *((Phase.shrink,) if CASES else ())),
    )
    @given(words(command, base, world))
    def check(arguments: list[str]) -> None:
        with limited(SECONDS):
            result = CliRunner().invoke(main, [name, *arguments])
        assert_clear(result, EXITS.get(name, CODES))

    check()
    made = (set(world.parent.iterdir()) | set(world.iterdir())) - before
    assert {path.name for path in made} <= {"cache", "hf"}, "something was written elsewhere"
    assert os.getcwd() == str(world / "work")
