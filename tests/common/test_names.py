"""Names of models, emotions and metrics: those that are refused, and the files that they become."""

from __future__ import annotations

import re

import pytest
from hostile import NAMES

from emo_mlflow.common.names import LONGEST, check_name, file_stem
from emo_mlflow.errors import UserError


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "C:\\x", "a\x00b", "a\nb", "\u202eevil", "a\u2028b", "$(id)", "<b>", "=1+1", "*",
                                  "\ud800", " ", "", "x" * (LONGEST + 1), "joy.basis", "joy.explained", 7, None,
                                  "\u0301joy", "joy\u200d", "\u200cjoy", "😊", "a😊", "\u093f"])  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(UserError) as caught:
        check_name(name, "emotion")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["joy", "très content", "喜び", "not-so.sad_2", "Joy", "1", "x" * LONGEST,
                                  "खुशी", "ความสุข", "tre\u0300s", "שִׂמְחָה", "می\u200cترسم", "ক্\u200dষ"])
def test_names_that_are_some(name):
    assert check_name(name, "emotion") == name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_stem_stays_in_its_folder_on_every_system(name, tmp_path):
    """Guards: `../`, devices of Windows, 255 bytes, and two names that become one file."""
    stem = file_stem(name)
    path = tmp_path / f"{stem}_residual_sweep.pkl"
    path.write_bytes(b"")
    assert path.resolve().parent == tmp_path.resolve()
    assert not re.search(r'[/\\:*?"<>|\x00-\x1f]', stem) and stem.strip(". ") == stem and len(stem.encode()) <= 80
    assert not re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", stem, re.IGNORECASE)
    assert file_stem(name) == stem and file_stem("gpt2.v1-a_b") == "gpt2.v1-a_b"


def test_names_that_lose_characters_stay_apart():
    """Guards: two long or odd names that are cut to the same file."""
    for first, second in (("x" * 300, "x" * 301), ("CON", "con"), ("../", "..\\"), ("é" * 200, "é" * 201)):
        assert file_stem(first) != file_stem(second)
