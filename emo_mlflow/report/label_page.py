"""A page to label a sheet's texts in: one HTML file that loads nothing and sends nothing, and saves the answers as CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from emo_mlflow.common.names import printable
from emo_mlflow.comparison.label_sheet import CONTINUATION, ID, PROMPT, SHEET
from emo_mlflow.scoring.questions import FLUENCY, POLITENESS, SENTIMENT, Question

GUIDES = {
    SENTIMENT: "As a reader would feel the text as a whole. Neither, both alike, or nothing to be felt: neither.",
    POLITENESS: "Of what is said to somebody. Polite: thanks, please, apologies, courteous requests. Rude: insults, scorn, needless commands. "
    "A story that only tells of it is neither.",
    FLUENCY: "The language only. Broken: a loop, word salad, fragments. Flawed: odd, but to be followed. An unfinished end is no defect.",
}
OF_EMOTION = "Who feels it does not matter; it must be in the words of the text. A weak sign, or only the name of the feeling: hint."

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Label texts</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222}
.text{border:1px solid #ccc;border-radius:6px;padding:1rem;white-space:pre-wrap;overflow-wrap:anywhere}
.prompt{color:#777}fieldset{border:0;padding:0;margin:.9rem 0}legend{font-weight:600}small{color:#666;display:block}
label{margin-right:1.2rem}button{font:inherit;padding:.3rem .9rem;margin:.3rem .3rem 0 0}
</style></head><body>
<h1>Label texts</h1>
<p>Read every text yourself and judge it alone. Label what the model wrote (black); the prompt (grey) is there to understand it. It was cut off after
a fixed number of tokens. Answers stay in this browser until you save them; nothing is sent.</p>
<p id="where"></p><div class="text"><span class="prompt" id="prompt"></span><span id="continuation"></span></div>
<form id="questions"></form>
<button id="back">Back</button><button id="next">Next</button><button id="open">Next without answers</button><button id="save">Save CSV</button>
<p id="note"></p>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), byId = (id) => document.getElementById(id);
const kept = "emo-mlflow " + data.sheet;
let answers = {}, at = 0;
try { answers = JSON.parse(localStorage.getItem(kept)) || {}; } catch (error) { answers = {}; }
const done = (row) => data.questions.every((q) => (answers[row.id] || {})[q.name] !== undefined);
function show() {
  const row = data.rows[at];
  byId("where").textContent = `Text ${at + 1} of ${data.rows.length}; ${data.rows.filter(done).length} have all answers`;
  byId("prompt").textContent = row.prompt;
  byId("continuation").textContent = row.continuation;
  for (const input of byId("questions").querySelectorAll("input"))
    input.checked = String((answers[row.id] || {})[input.name]) === input.value;
}
for (const question of data.questions) {
  const field = document.createElement("fieldset"), legend = document.createElement("legend"), guide = document.createElement("small");
  legend.textContent = question.name; guide.textContent = question.guide; field.append(legend);
  question.answers.forEach((answer, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, {type: "radio", name: question.name, value: String(question.lowest + i)});
    input.addEventListener("change", () => {
      (answers[data.rows[at].id] ||= {})[question.name] = question.lowest + i;
      try { localStorage.setItem(kept, JSON.stringify(answers)); } catch (error) { byId("note").textContent = "Nothing is kept here: save often."; }
    });
    label.append(input, ` ${answer}`); field.append(label);
  });
  field.append(guide); byId("questions").append(field);
}
const go = (to) => { at = Math.min(Math.max(to, 0), data.rows.length - 1); show(); };
byId("back").addEventListener("click", () => go(at - 1));
byId("next").addEventListener("click", () => go(at + 1));
byId("open").addEventListener("click", () => { const to = data.rows.findIndex((row) => !done(row)); if (to >= 0) go(to); });
byId("save").addEventListener("click", () => {
  const cell = (value) => `"${String(value).replaceAll('"', '""')}"`, names = data.questions.map((q) => q.name);
  const lines = [["sheet", "id", ...names].map(cell).join(",")];
  for (const row of data.rows) lines.push([data.sheet, row.id, ...names.map((n) => (answers[row.id] || {})[n] ?? "")].map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\n") + "\\n"], {type: "text/csv"}));
  link.download = "labels.csv"; link.click();
  const left = data.rows.filter((row) => !done(row)).length;
  byId("note").textContent = left ? `Saved; ${left} texts lack answers.` : "Saved, with all answers.";
});
show();
</script></body></html>
"""


def label_page(sheet: pd.DataFrame, asked: Sequence[Question]) -> str:
    """The page of a sheet (`comparison.label_sheet.make_sheet`). Its script shows texts as text: no markup in them counts."""
    rows = [{name: printable(str(row[name])) for name in (ID, PROMPT, CONTINUATION)} for row in sheet.to_dict("records")]
    data: dict[str, Any] = {"sheet": str(sheet[SHEET].iloc[0]), "rows": rows, "questions": [_question(question) for question in asked]}
    text = json.dumps(data, ensure_ascii=True).translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&"})
    return _PAGE.replace("@DATA@", text)


def _question(question: Question) -> dict[str, Any]:
    guide = GUIDES.get(question.name, OF_EMOTION)
    return {"name": question.name, "lowest": question.lowest, "answers": list(question.answers), "guide": guide}
