"""The page to label in, in a real Chromium: answers given by mouse come out as a sheet that `agree` reads."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from emo_mlflow.comparison.label_sheet import open_sheet, read_labels
from emo_mlflow.report.label_page import label_page
from emo_mlflow.scoring.questions import questions

EVIL = "</script><img src=x onerror=document.title='evil'>\n\u2028\\u003c \"quoted\", & more"


@pytest.mark.browser
def test_answers_on_the_page_become_a_sheet(tmp_path: Path):
    """Guards: markup in a text that the page runs, an answer that moves to another text, a page that fetches something, lost answers."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    asked = questions(["gratitude"])
    rows = [(f"{'a' * 32}.3.0", f"id{i}", f"prompt {i}", f"text {i} {EVIL}") for i in range(3)]
    sheet = pd.DataFrame(rows, columns=["sheet", "id", "prompt", "continuation"]).assign(**{question.name: "" for question in asked})
    (tmp_path / "page.html").write_text(label_page(sheet, asked), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        asked_for: list[str] = []

        def opened() -> Any:
            """The page in a browser of the profile `tmp_path / "profile"`, as a user's is."""
            browser = playwright.chromium.launch_persistent_context(tmp_path / "profile", executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.on("request", lambda request: asked_for.append(request.url))
            page.goto((tmp_path / "page.html").as_uri())
            return browser, page

        browser, page = opened()
        for i in range(3):
            assert page.text_content("#continuation").startswith(f"text {i} </script><img")
            for question in asked:
                page.check(f'input[name="{question.name}"][value="{i - 1 if question.lowest else i}"]')
            page.click("#next")
        assert "3 have all answers" in page.text_content("#where")
        answers = page.evaluate("Object.values(localStorage).join()").encode()
        deadline = time.monotonic() + 60  # Chromium writes in batches, some seconds apart
        while not any(answers in file.read_bytes() for file in (tmp_path / "profile").glob("Default/Local Storage/**/*") if file.is_file()):
            assert time.monotonic() < deadline, "the answers never reached the disk"
            time.sleep(0.2)
        browser.close()
        browser, page = opened()  # what was answered is kept
        assert "3 have all answers" in page.text_content("#where")
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "labels.csv")
        assert page.title() == "Label texts" and "with all answers" in page.text_content("#note")
        assert all(url.startswith(("file:", "blob:")) for url in asked_for)
        browser.close()
    table, draw = open_sheet(tmp_path / "labels.csv")
    labels = read_labels(table, tmp_path / "labels.csv", sheet, asked)
    assert draw.n == 3 and labels["gratitude"].tolist() == [0, 1, 2] and labels["sentiment"].tolist() == [-1, 0, 1]
