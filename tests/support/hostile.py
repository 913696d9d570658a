"""Files and values that nobody should have written: mutations of valid files, hostile names, and how to tell a clear error."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

# How many cases each target gets; a few in CI, thousands when somebody looks for more.
CASES = int(os.environ.get("EMO_MLFLOW_FUZZ", "0"))

NAMES = (
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "C:\\Windows\\x",
    "..\\..\\x",
    "a\x00b",
    "a\nb",
    "a\rb",
    "CON",
    "nul.txt",
    "x" * 300,
    "é" * 200,
    "\u202eevil",
    "a\u2028b",
    "~nobody-is-called-this/x",
    "$HOME",
    "`id`",
    "$(id)",
    "<script>alert(1)</script>",
    "=1+1",
    "@SUM(A1)",
    "-1",
    "--help",
    "%s%n",
    "{model}",
    "*",
    "?",
    "[a-z]",
    "\ud800",
    " ",
    "",
)
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "../../x", "\x00", "9" * 5000, "1e999", [], [[]], {}, {"a": {}}, [None], ["x"], [1, 2, 3], {"": None},
)  # fmt: skip
CHUNKS = (b"\x00", b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x00" * 64, b"{", b"[", b'"', b"[" * 3000, b"\n", b"\r", b"\xed\xa0\x80", b"NaN", b"1e999")


def mutations(valid: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Variants of a valid file: cut, flipped, spliced, repeated, with structure changed where it is JSON, and random bytes."""
    rng = random.Random(seed)
    yield b""
    yield rng.randbytes(200)
    kinds: list[Callable[[bytes, random.Random], bytes]] = [_cut, _flip, _splice, _overwrite, _repeat, _random_head]
    if valid[:1] in b"{[":
        kinds += [_json_value] * 12
    for _ in range(count):
        made = valid
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            made = rng.choice(kinds)(made, rng)
        yield made


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        if made:
            made[_place(made, rng)] ^= 1 << rng.randrange(8)
    return bytes(made)


def _place(data: bytes | bytearray, rng: random.Random) -> int:
    """Half the time in the first 200 bytes, where a format keeps its header."""
    return rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))


def _splice(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng) if data else 0
    return data[:at] + rng.choice(CHUNKS) + data[at + rng.choice((0, 0, 4, 8)) :]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng) if data else 0
    number = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, rng.randrange(2**64)))
    return data[:at] + number.to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))] + data[at + 8 :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.randrange(1, 200)]
    return data[:start] + part * rng.choice((2, 3, 50)) + data[start:]


def _random_head(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(8) + data[8:]


def _json_value(data: bytes, rng: random.Random) -> bytes:
    """JSON (a document, or lines of it) with a value, somewhere, replaced, removed, or under another key."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        payload = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _flip(data, rng)
    box = {"": payload}
    node: object = box
    key: object = ""
    while True:
        inner = node[key]  # type: ignore[index]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
            break
        node = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
    if isinstance(node, dict) and node is not box and rng.random() < 0.25:
        value = node.pop(key)
        if rng.random() < 0.5:
            node[rng.choice(("", "../x", "weight", "__metadata__"))] = value
    else:
        node[key] = rng.choice(VALUES)  # type: ignore[index]
    lines[at] = json.dumps(box[""]).encode()
    return b"\n".join(lines)


def corrupted_header(valid: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Variants of a safetensors file whose header is whole JSON with wrong values."""
    rng = random.Random(seed)
    length = int.from_bytes(valid[:8], "little")
    for _ in range(count):
        header = _json_value(valid[8 : 8 + length], rng)
        yield len(header).to_bytes(8, "little") + header + valid[8 + length :]


def write(path: Path, content: bytes) -> Path:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
