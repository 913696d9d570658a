"""llama.cpp with a control vector, for bench/control_vectors.py, which runs this file in an environment that has it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

N_STEPS, N_PROMPTS = 30, 8
ENDS = (0,)  # what ours may not write before the last token, either


class ControlVectors:
    """llama.cpp on one file; imported in its own environment only."""

    def __init__(self, path: str) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)  # C keeps its address
        llama_cpp.llama_log_set(self._quiet, None)
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max = 2048, 512, 512, N_PROMPTS
        asked.n_threads = asked.n_threads_batch = 1
        asked.type_k = asked.type_v = llama_cpp.GGML_TYPE_F32
        asked.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        asked.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, asked)
        self.width, self.n_layers = llama_cpp.llama_model_n_embd(self.model), llama_cpp.llama_model_n_layer(self.model)
        self.n_vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def steer(self, after: int, vector: np.ndarray) -> None:
        """Adds a vector to what leaves one block; the table begins with block 1."""
        table = np.zeros((self.n_layers - 1, self.width), np.float32)
        table[after - 1] = vector
        data = table.ctypes.data_as(self.lib.ctypes.POINTER(self.lib.ctypes.c_float))
        code = self.lib.llama_set_adapter_cvec(self.context, data, table.size, self.width, 1, self.n_layers)
        if code:
            raise RuntimeError(f"llama_set_adapter_cvec gave {code}")

    def write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Greedy continuations of some prompts, each a sequence of its own, together."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        texts: list[list[int]] = [[] for _ in prompts]
        newest = [list(prompt) for prompt in prompts]
        for _ in range(N_STEPS):
            lengths = [len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)]
            for text, row in zip(texts, self._decode(newest, lengths), strict=True):
                logits = np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, row), (self.n_vocabulary,))
                logits[list(ENDS)] = -np.inf
                text.append(int(logits.argmax()))
            newest = [text[-1:] for text in texts]
        return texts

    def _decode(self, newest: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
        """Takes in the newest tokens of every sequence; where the logits of their last ones are."""
        n, ends = 0, []
        for sequence, (tokens, length) in enumerate(zip(newest, lengths, strict=True)):
            for place, token in enumerate(tokens, length - len(tokens)):
                self.batch.token[n], self.batch.pos[n], self.batch.n_seq_id[n] = token, place, 1
                self.batch.seq_id[n][0], self.batch.logits[n] = sequence, place == length - 1
                n += 1
            ends.append(n - 1)
        self.batch.n_tokens = n
        if code := self.lib.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode gave {code}")
        return ends


def serve(path: str) -> None:
    """Answers requests, a JSON line each: {after, vector, prompts, together} to {seconds, texts}."""
    peer = ControlVectors(path)
    print(json.dumps({"llama-cpp-python": importlib.metadata.version("llama_cpp_python")}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts, vector = asked["prompts"], np.array(asked["vector"], np.float32)
        start = time.process_time()
        peer.steer(asked["after"], vector)
        texts = peer.write(prompts) if asked["together"] else [text for prompt in prompts for text in peer.write([prompt])]
        print(json.dumps({"seconds": time.process_time() - start, "texts": texts}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
