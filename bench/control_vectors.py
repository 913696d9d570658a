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
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import platformdirs
import torch
from engine import Speed, embedded_model, print_speeds
from engine_environment import PeerProcess, peer_python
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize

from emo_mlflow.models.embedded import fetch_gguf


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


def measure(python: Path, n_conditions: int, repetitions: int) -> dict[str, Speed]:
    """Ours and llama.cpp by turns."""
    ours = embedded_model(n_conditions)
    prompts = [list(prompt) for prompt in ours.work.prompts()]
    speeds: defaultdict[str, Speed] = defaultdict(Speed)
    with tempfile.TemporaryDirectory() as name, ExitStack() as closing:
        own, single = fetch_gguf(Path(name) / "own.gguf"), Path(name) / "float32.gguf"
        as_float32(own, single)
        peers = {}
        for kind, path in {"float32": single, "4 bits a weight": own}.items():
            peers[kind] = PeerProcess(python, "control_vectors_peer.py", str(path))
            closing.callback(peers[kind].close)
            print("peer:", kind, ", ".join(f"{key} {value}" for key, value in peers[kind].versions.items()))
        for repetition in range(repetitions):
            run = ours.run("all", likelihoods=False)
            speeds["ours"].tokens_per_second.append(run.speed)
            direction, layer = repetition % ours.work.n_directions, 2 + 9 * repetition % (ours.work.n_layers - 2)
            vector = ours.directions[direction, layer].tolist()
            for (kind, peer), together in itertools.product(peers.items(), (False, True)):
                answer = peer.run(after=layer - 1, vector=vector, prompts=prompts, together=together)
                label = f"llama.cpp, {kind}, " + ("batch of 8" if together else "a text at a time")
                speeds[label].take(answer, run, f"{direction}/{layer}")
    return speeds


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=platformdirs.user_cache_path("emo_mlflow") / "bench-peers", help="folder of environments")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--conditions", type=int, default=90)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print_speeds(measure(peer_python(asked.peers, "llama-cpp-python", ("numpy",)), asked.conditions, asked.repetitions))


if __name__ == "__main__":
    main()
