"""Data sets as they are published are read as they are, or refused with the option that would read them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emo_mlflow.errors import UserError
from emo_mlflow.prompts.columns import GOEMOTIONS, Layout
from emo_mlflow.prompts.files import read_rows

WORDS = [("I am, so glad", "joy"), ("Leave me alone", "anger"), ("It rained", "neutral"), ("What fun", "joy"), ("No \"way\"", "anger")]


def pairs(path: Path, *layout: str) -> list[tuple[str, str]]:
    return [row[:2] for row in read_rows(path, Layout(*layout))]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_goemotions_as_in_its_repository(tmp_path: Path) -> None:
    """No header, tabs, quotes that mean nothing, numbers for emotions, several of them in some rows."""
    lines = ["My favourite food is \"anything.\t27\teebbqej", "WHY THE FUCK\t2\teezlygj", "Thank you, friend\t15\ted7ypvh", "Both\t0,15\tabcdefg"]
    path = write(tmp_path / "train.tsv", "\n".join(lines) + "\n")
    assert pairs(path) == [('My favourite food is "anything.', "neutral"), ("WHY THE FUCK", "anger"), ("Thank you, friend", "gratitude")]
    write(tmp_path / "emotions.txt", "\n".join(name.upper() for name in GOEMOTIONS))
    assert pairs(path)[1] == ("WHY THE FUCK", "ANGER"), "the file beside it says what the numbers mean"


def test_goemotions_with_a_column_for_each_emotion(tmp_path: Path) -> None:
    header = ["text", "id", "rater_id", "example_very_unclear", *GOEMOTIONS]
    flags = [["1" if name in named else "0" for name in GOEMOTIONS] for named in (("gratitude",), ("joy", "love"), ())]
    rows = [["Thanks, a lot", "a", "1", "False", *row] for row in flags]
    path = write(tmp_path / "goemotions_1.csv", "\n".join(",".join(f'"{cell}"' for cell in row) for row in [header, *rows]))
    assert pairs(path) == [("Thanks, a lot", "gratitude")]


def test_empathetic_dialogues(tmp_path: Path) -> None:
    """Commas are written out, quotes are part of texts; what was felt is `prompt`, the emotion `context`."""
    lines = [
        "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags",
        'hit:0_conv:1,1,sentimental,I remember "going_comma_ once,1,I remember going to see it,5|5|5_2|2|5,',
        "hit:1_conv:2,1,afraid,It was dark,2,Oh no,5|5|5_2|2|5,",
        "hit:1_conv:2,2,afraid,It was dark,3,Yes_comma_ dark,5|5|5_2|2|5,<HI>,more",
    ]
    path = write(tmp_path / "train.csv", "\n".join(lines))
    assert pairs(path) == [('I remember "going, once', "sentimental"), ("It was dark", "afraid"), ("It was dark", "afraid")]
    assert pairs(path, "utterance")[2] == ("Yes, dark", "afraid")


def parquet(path: Path, names: list[str] | None) -> Path:
    table = pa.table({"text": [text for text, _ in WORDS], "label": pa.array([0, 1, 2, 0, 1], pa.int64())})
    if names:
        features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_classes_by_number_with_their_names(tmp_path: Path) -> None:
    """As dair-ai/emotion: the names are in the parquet file's metadata; or in a file beside it; or it is refused."""
    assert pairs(parquet(tmp_path / "a.parquet", ["joy", "anger", "neutral"])) == WORDS
    plain = parquet(tmp_path / "b.parquet", None)
    with pytest.raises(UserError, match=r"'label' has numbers up to 2, and nothing says what they mean: put a file emotions.txt beside it"):
        pairs(plain)
    write(tmp_path / "emotions.txt", "joy\nanger\n")
    with pytest.raises(UserError, match=r"emotions.txt names 2"):
        pairs(plain)
    write(tmp_path / "emotions.txt", "joy\nanger\nneutral\n")
    assert pairs(plain) == WORDS


def test_lines_of_text_and_emotion(tmp_path: Path) -> None:
    """As the text files of dair-ai/emotion."""
    path = write(tmp_path / "train.txt", "i didnt feel humiliated;sadness\ni am, glad;joy\n")
    assert pairs(path) == [("i didnt feel humiliated", "sadness"), ("i am, glad", "joy")]


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_marked_encodings_need_no_option(tmp_path: Path, between: str, encoding: str) -> None:
    """Spreadsheets write semicolons where the comma is decimal, and UTF-16 for `Unicode text`."""
    lines = [between.join(("text", "emotion")), *(between.join((f'"{text.replace(chr(34), chr(34) * 2)} é"', emotion)) for text, emotion in WORDS)]
    path = write(tmp_path / ("data.tsv" if between == "\t" else "data.csv"), "\r\n".join(lines), encoding)
    assert pairs(path) == [(f"{text} é", emotion) for text, emotion in WORDS]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "shift_jis"])
def test_another_encoding_is_named_in_the_refusal_and_read_by_its_option(tmp_path: Path, encoding: str) -> None:
    """Guards: `save it as UTF-8` for people who cannot, and letters that are silently others."""
    word = "とても" if encoding == "shift_jis" else "très"
    path = write(tmp_path / "data.csv", f"text,emotion\n{word} content,joy\n{word} triste,sadness\n", encoding)
    with pytest.raises(UserError, match=f"encoding={encoding}"):
        pairs(path)
    assert pairs(path, "", "", encoding) == [(f"{word} content", "joy"), (f"{word} triste", "sadness")]
    with pytest.raises(UserError, match=r"encoding='klingon' is not known: such as utf-8"):
        pairs(path, "", "", "klingon")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_that_are_called_otherwise_are_named(tmp_path: Path, suffix: str) -> None:
    """Guards: a refusal that does not say how the file would be read."""
    path = tmp_path / f"data.{suffix}"
    rows = [{"id": i, "sentence": f"{text} {i}", "feeling": emotion} for i, (text, emotion) in enumerate(WORDS * 3)]
    if suffix == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)))
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, "\n".join(["id;sentence;feeling", *(f"{row['id']};{row['sentence']};{row['feeling']}".replace('"', "") for row in rows)]))
    with pytest.raises(UserError, match=r"no column 'text'; it has id, sentence, feeling.*say text_column=sentence"):
        pairs(path)
    with pytest.raises(UserError, match=r"no column 'emotion'.*say emotion_column=feeling"):
        pairs(path, "sentence")
    found = pairs(path, "sentence", "feeling")
    assert Counter(emotion for _, emotion in found) == {"joy": 6, "anger": 6, "neutral": 3} and found[2] == ("It rained 2", "neutral")
    with pytest.raises(UserError, match=r"no column 'words'"):
        pairs(path, "words", "feeling")


def test_a_file_that_is_not_there_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"looked for {tmp_path}/mine.csv$"):
        pairs(Path("mine.csv"))
