"""The tokenizer of a GGUF file, made from its vocabulary and checked: a file names how text is cut, and does not say it.

transformers' own reading loses the order of merges of some files (Gemma's: "there" becomes "t", "he", "re") without an error. So it is
built here, and held to the vocabulary: a text goes through it and back, and a word of the vocabulary is that one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # llama.cpp's types of tokens
SPACE, BYTE_SPACE = "▁", "Ġ"
_LETTERS_OF_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How byte-level vocabularies cut a text into words, by the name that llama.cpp gives to it: the rules of the published tokenizers.
WORDS = {
    "default": None,
    "gpt-2": None,
    "llama-bpe": _LETTERS_OF_LLAMA_3 % "{1,3}",
    "qwen2": _LETTERS_OF_LLAMA_3 % "",
}
DIGITS_ALONE = ("smollm",)
TEXTS = ("Thank you, there were 1234 of them!", "naïve café 你好 🙂", "  two  spaces\n\nand\tlines", "I'm <b>here</b>")
SAMPLE, LEAST_SHARE = 2000, 0.98


def make_tokenizer(reader: GGUFReader, path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a file.

    Raises:
        UserError: if its kind is not known here, or what was built does not cut texts as the vocabulary says.
    """
    fields = {name.removeprefix("tokenizer."): field for name, field in reader.fields.items() if name.startswith("tokenizer.")}

    def value(name: str, default: Any = None) -> Any:
        return fields[name].contents() if name in fields else default

    kind, tokens, types = value("ggml.model"), value("ggml.tokens"), value("ggml.token_type")
    if not tokens or not types or len(tokens) != len(types):
        raise UserError(f"{path}: the file has no vocabulary: give the model's folder")
    prefixed = bool(value("ggml.add_space_prefix", True))
    if kind == "llama" and value("ggml.scores"):
        backend, marker = _of_pieces(tokens, types, value("ggml.scores"), prefixed), SPACE
    elif kind == "gpt2" and value("ggml.merges") and (value("ggml.pre", "default") in (*WORDS, *DIGITS_ALONE)):
        backend, marker = _of_bytes(tokens, value("ggml.merges"), value("ggml.pre", "default")), BYTE_SPACE
    else:
        raise UserError(
            f"{path}: its tokenizer ({shown(kind)}, {shown(value('ggml.pre', 'default'))}) is none that is read from a GGUF file: "
            "give the model's folder"
        )
    of: dict[int, list[str]] = {}
    for token, type_ in zip(tokens, types, strict=True):
        of.setdefault(int(type_), []).append(token)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in of.get(CONTROL, ())])
    backend.add_tokens([AddedToken(token, special=False, normalized=marker == SPACE and SPACE in token) for token in of.get(USER, ())])
    check_cuts(backend, of.get(NORMAL, ()), marker, path)
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: value(f"ggml.{name}_token_id") for role, name in roles.items()}
    named = {f"{role}_token": tokens[int(i)] for role, i in ids.items() if i is not None and int(i) < len(tokens)}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    made.chat_template = value("chat_template")
    return made


def _of_pieces(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], prefixed: bool) -> Tokenizer:
    """SentencePiece's BPE: of all pairs whose join is a piece, the one of the best score is joined first."""
    ids = {token: i for i, token in enumerate(tokens)}
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}

    def pairs(piece: str) -> Iterator[tuple[str, str]]:
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        yield from sorted((cut for cut in cuts if cut[0] in normal and cut[1] in normal), key=lambda cut: (ids[cut[0]], ids[cut[1]]))

    ranked = sorted((token for token in normal if len(token) > 1), key=lambda token: -scores[ids[token]])
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None) or ("<unk>" if "<unk>" in ids else None)
    backend = Tokenizer(BPE(ids, [pair for piece in ranked for pair in pairs(piece)], unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces: list[Any] = [normalizers.Prepend(SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", SPACE)])
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
    return backend


def _of_bytes(tokens: Sequence[str], merges: Sequence[str], words: str) -> Tokenizer:
    """Byte-level BPE on words."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=words == "llama-bpe"))
    rule = WORDS.get(words)
    first: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated")] if rule else []
    first += [pre_tokenizers.Digits(individual_digits=True)] if words in DIGITS_ALONE else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)])
    backend.decoder = decoders.ByteLevel()
    return backend


def check_cuts(backend: Tokenizer, normal: Sequence[str], marker: str, path: Path) -> None:
    """Refuses a tokenizer through which texts do not come back, or that cuts words which its vocabulary has whole.

    Raises:
        UserError: naming the text, or the word and its parts.
    """
    for text in TEXTS:
        back = backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        if back != text:
            raise UserError(f"{path}: its tokenizer makes {back!r} of {text!r}: give the model's folder")
    whole = [token for token in normal if token.startswith(marker) and token[1:].isalpha() and token.isprintable() and token[1:].isascii()]
    step = max(1, len(whole) // SAMPLE)
    cut = []
    for token in whole[::step]:
        prefix = "" if backend.encode(token[1:], add_special_tokens=False).tokens[:1] == [token] else " "
        found = backend.encode(prefix + token[1:], add_special_tokens=False).tokens
        if found != [token]:
            cut.append((token, found))
    if len(cut) > (1 - LEAST_SHARE) * len(whole[::step]):
        word, parts = cut[0]
        raise UserError(f"{path}: its tokenizer cuts {word[1:]!r} into {parts}, which its vocabulary has whole: give the model's folder")
