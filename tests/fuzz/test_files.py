"""Random parameters for every command, and damaged files for every reader: the answer is a result or one clear line.

A few cases each here; many with EMO_MLFLOW_FUZZ=2000 in the environment (cases per reader, and a tenth of that per command). What was found
this way has a test of its own in test_findings.py, or beside the module that it was in.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hostile import CASES, corrupted_header, mutations, write
from tiny_models import save_tiny
from tiny_scorers import seal, write_scorer

from emo_mlflow.commands.compare import source_of
from emo_mlflow.comparison import compare_sweeps
from emo_mlflow.directions import files as directions
from emo_mlflow.errors import UserError
from emo_mlflow.interchange import vector_files
from emo_mlflow.interchange.first_system import export_legacy
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.models.weights import count_parameters, read_header, weights_digest
from emo_mlflow.prompts.selection import load_prompts
from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER, dump_card, load_card
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.score_cache import ScoreCache
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.tracking.reading import Sweep
from emo_mlflow.types import Direction

pytestmark = pytest.mark.filterwarnings("ignore")
Reader = tuple[bytes, Callable[[bytes], object]]


def assert_clear(error: UserError) -> None:
    """One line of readable length, which every terminal and file takes."""
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000
    text.encode()


def throw(valid: bytes, read: Callable[[bytes], object], seed: int, count: int, header: bool = False, some: bool = True) -> None:
    """Reads variants of a valid file: each gives something, or a clear error."""
    read(valid)
    cases = [*mutations(valid, seed, count), *(corrupted_header(valid, seed, count) if header else ())]
    refused = 0
    for case in cases:
        try:
            read(case)
        except UserError as error:
            assert_clear(error)
            refused += 1
    assert refused or not some, "none of the variants was damaged"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder and a cache of its own, and no hub."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Files.

ROWS = [{"text": f"{name} text {i}, is here", "emotion": name, "role": ["fit", "test"][i % 2]} for name in ("joy", "neutral") for i in range(6)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_data_sets(ending, place):
    """JSONL, CSV and parquet of a user."""
    path = place / f"data.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif ending == "csv":
        pd.DataFrame(ROWS).to_csv(path, index=False)
    else:
        pd.DataFrame(ROWS).to_parquet(path)
    throw(path.read_bytes(), lambda content: load_prompts(str(write(path, content)), max_samples=3), 1, CASES or 60)


def directions_file(path: Path) -> bytes:
    made = {name: Direction(name, "resid_pre", np.ones((3, 4), np.float32)) for name in ("joy", "fear")}
    metadata = {"model_fingerprint": "x", "residual_norms": "[1.0, 2.0, 3.0]", "model_type": "gpt2"}
    directions.save_directions(path, made, metadata)
    return path.read_bytes()


def test_directions(place):
    """directions.safetensors, as a sweep reads it."""
    path = place / "d.safetensors"

    def read(content: bytes) -> None:
        found, metadata = directions.load_directions(write(path, content))
        directions.norms_from_metadata(metadata, 3)
        directions.check_directions(found, metadata, emotions=list(found), site="resid_pre", shape=(3, 4), fingerprint="x")

    throw(directions_file(path), read, 2, CASES or 60, header=True)


def test_vector_files(place):
    """Control vectors in GGUF, and safetensors of others."""
    vector_files.write_gguf(place / "v.gguf", {i: np.full(4, i, np.float32) for i in (1, 2, 3)}, "gpt2", 5)
    for name, valid in (("v.gguf", (place / "v.gguf").read_bytes()), ("v.safetensors", directions_file(place / "v.safetensors"))):

        def read(content: bytes, name: str = name) -> None:
            vector_files.import_vectors(vector_files.ImportSettings(write(place / name, content), place / "out.safetensors"))

        throw(valid, read, 3, CASES or 60, header=name.endswith("safetensors"))


def test_headers_of_weights(place):
    """The headers that are read before a model is, however large the numbers in them."""

    def read(content: bytes) -> None:
        tensors = read_header(write(place / "w.safetensors", content))
        count_parameters(tensors)
        weights_digest(tensors)

    throw(directions_file(place / "w.safetensors"), read, 4, CASES or 100, header=True)


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_cards(kind, place):
    """A scorer's card: as text, and as a structure with wrong values."""
    folder = write_scorer(place / "scorer")
    card = load_card(folder / CARD)
    valid = (folder / CARD).read_bytes()
    if kind == "json":  # which is YAML too, and has its structure mutated
        import yaml

        valid = json.dumps(yaml.safe_load(valid)).encode()

    def read(content: bytes) -> None:
        found = load_card(write(place / "card.yaml", content))
        assert len(found.key) < 200 and "/" not in found.key
        dump_card(found)

    assert card.heads
    throw(valid, read, 5, CASES or 60)


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER])
def test_scorers(name, place):
    """An ONNX graph and a tokenizer whose hashes fit their card: somebody's scorer, as a sweep loads it."""
    folder = write_scorer(place / "scorer")
    card, valid = load_card(folder / CARD), (folder / name).read_bytes()

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        seal(folder, card)
        load_scorers([str(folder)]).score(["one two", "", "three" * 10])

    throw(valid, read, 6, CASES or 40)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"])
def test_models(name, place):
    """Each file of a local model's folder."""
    folder = save_tiny(place / "model", "llama", n_layers=2, d_model=16)
    valid = (folder / name).read_bytes()

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        spec = resolve(str(folder))
        check(spec)
        BlockStack(load(spec, torch.device("cpu"), torch.float32).model)

    # transformers passes over most of what is wrong in generation_config.json, and the package reads nothing else of it
    throw(valid, read, 7, CASES or 25, header=name.endswith("safetensors"), some=name != "generation_config.json")


def test_spools(place):
    """Finished cells of another version or another program, whose checksums are right: as `resume` reads them."""
    header = {"work": "w", "run_id": "0" * 32, "store": "sqlite:///x.db", "profile": "smoke", "given": {"seed": "1"}, "batch_size": 4}
    cell = {"cell": {"condition_id": "c", "prompt_id": "p", "sample": 0}, "completion": "x", "n_tokens": 1, "nll": 1.0, "distinct_2": 0.5}
    cell |= {"nll_sd": 0.5, "n_patched": 1, "failure": None}

    def line(text: bytes) -> bytes:
        return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"

    def read(content: bytes) -> None:
        head, _, records = content.partition(b"\n")
        spool = Spool(place)
        write(spool.path, line(head) + line(records.partition(b"\n")[0]))
        found = spool.header()
        for name in header:
            found[name]
        spool.begin({"work": "w"})
        list(spool.completions())

    valid = json.dumps(header).encode() + b"\n" + json.dumps([cell, cell]).encode()
    throw(valid, read, 11, CASES or 60)
    whole = b"".join(map(line, valid.split(b"\n")))
    throw(whole, lambda content: list(Spool(write(place / "cells.spool", content).parent).batches()), 12, CASES or 20)


def test_score_caches(place):
    """A SQLite file that another program wrote."""
    cache = ScoreCache(place / "valid.db")
    cache.write("f", {text: np.ones(3, np.float32) for text in ("a", "b")})

    def read(content: bytes) -> None:
        found = ScoreCache(write(place / "s.db", content))
        assert all(len(row) == 3 for row in found.read("f", ["a", "b"], 3).values())
        found.write("f", {"c": np.zeros(3, np.float32)})

    throw((place / "valid.db").read_bytes(), read, 8, CASES or 40)


# Runs.


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The artifacts of a sweep, as tracking writes them."""
    from synthetic import synthetic_sweep

    from emo_mlflow.tracking.record import write_artifacts

    folder = tmp_path_factory.mktemp("run")
    write_artifacts(synthetic_sweep("model-a", n_prompts=3, n_layers=2, n_random=2, alphas=(1.0,)), folder)
    return folder


def sweep_in(folder: Path) -> Sweep:
    """A sweep whose artifacts are files in a folder."""

    class Local(Sweep):
        seconds = float("nan")

        def __init__(self) -> None:
            self.run_id, self.status = "0" * 32, "FINISHED"

        def _fetch(self, name: str) -> Path:
            return folder / name

    return Local()


def use(folder: Path) -> None:
    """What a comparison and an export read."""
    sweep = sweep_in(folder)
    source = source_of(sweep)
    compare_sweeps([source], n_bootstrap=10)
    source.texts(list(source.conditions["condition_id"]))
    export_legacy(sweep, folder / "legacy")


def copied(artifacts: Path, folder: Path) -> Path:
    """The folder, made and filled with the files of a run, to be damaged."""
    folder.mkdir()
    for path in artifacts.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["config.json", "prompts.parquet", "conditions.parquet", "completions.parquet", "scores.parquet",
                                  "effects.parquet", "directions.safetensors"])  # fmt: skip
def test_artifacts_of_runs(name, artifacts, place):
    """A run on somebody's server, file by file, as `compare` and `export-legacy` use it."""
    folder = copied(artifacts, place / "run")
    valid = (folder / name).read_bytes()

    alone = {"effects.parquet": "effects", "directions.safetensors": "directions"}

    def read(content: bytes) -> None:
        (folder / name).write_bytes(content)
        if name in alone:
            assert len(getattr(sweep_in(folder), alone[name]))
        else:
            use(folder)

    throw(valid, read, 9, CASES or 15, header=name.endswith("safetensors"))


@pytest.mark.parametrize("name", ["conditions", "completions", "scores", "prompts"])
def test_tables_of_runs(name, artifacts, place):
    """Whole parquet files with wrong columns, rows and values: what a damaged byte seldom makes."""
    folder = copied(artifacts, place / "run")
    valid = pd.read_parquet(folder / f"{name}.parquet")
    rng = random.Random(10)
    for _ in range(CASES or 10):
        table = _wrong(valid, rng)
        try:
            table.to_parquet(folder / f"{name}.parquet", index=False)
        except Exception:  # no parquet file can hold it
            continue
        try:
            use(folder)
        except UserError as error:
            assert_clear(error)


def _wrong(table: pd.DataFrame, rng: random.Random) -> pd.DataFrame:
    column = rng.choice(list(table.columns))
    kind = rng.randrange(8)
    if kind == 0:
        return table.drop(columns=column)
    if kind == 1:
        return table.rename(columns={column: rng.choice(["x", "", "../x", *table.columns])})
    if kind == 2:
        return table.iloc[: rng.randrange(len(table))]
    if kind == 3:
        return pd.concat([table, table.iloc[: rng.randrange(1, 4)]])
    if kind == 4:
        return table.sample(frac=1, random_state=rng.randrange(100))
    value = rng.choice([None, float("nan"), float("inf"), -1, 10**12, "x", "", "baseline", "emotion", "random", True, b"x", [1], {"a": 1}])
    made = table.astype({column: object})
    rows = range(len(table)) if kind == 5 else rng.sample(range(len(table)), rng.randrange(1, 4))
    for row in rows:
        made.iat[row, list(made.columns).index(column)] = value
    return made if kind < 7 else made.infer_objects()
