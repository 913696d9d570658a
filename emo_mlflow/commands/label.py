"""`emo-mlflow label`: texts of a finished sweep, drawn at random for readers, as a blinded sheet and a page."""

from __future__ import annotations

from pathlib import Path

from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.comparison.label_sheet import BASELINE, Draw, all_cells, drawn, make_sheet
from emo_mlflow.errors import UserError
from emo_mlflow.report.label_page import label_page
from emo_mlflow.scoring.questions import Question, questions
from emo_mlflow.sweeping.files import check_cells
from emo_mlflow.tracking.reading import Sweep, load_sweep
from emo_mlflow.tracking.store import check_store
from emo_mlflow.types import Say

KINDS = {BASELINE: "the baseline", "emotion": "emotions", "random": "random controls"}


def asked_of(sweep: Sweep) -> tuple[Question, ...]:
    """What readers are asked about a sweep's texts. Conditions of several emotions at once ask nothing of their own."""
    emotions = sweep.conditions.loc[sweep.conditions["kind"] == "emotion", "emotion"]
    return questions(name for name in dict.fromkeys(map(str, emotions)) if name in sweep.config["emotions"])


def write_label_sheet(run_id: str, n: int, seed: int, out: Path | None, tracking_uri: str | None, say: Say) -> None:
    """Writes the sheet and, beside it, the page.

    Args:
        n: texts to draw; fewer where the sweep has fewer.
        out: the sheet; None for labels-RUN.csv here.

    Raises:
        UserError: if the run is no finished sweep, its texts are gone, or the sheet is there already.
    """
    check_store(tracking_uri)
    path = out or Path(f"labels-{run_id[:8]}.csv")
    page = path.with_suffix(".html")
    if found := next((file for file in (path, page) if file.exists()), None):
        raise UserError(f"{found} is there already, perhaps with labels in it: move it away, or name another file with --out")
    sweep = load_sweep(run_id, tracking_uri)
    check_cells(sweep.prompts, sweep.conditions, sweep.completions, sweep.scores)
    draw, asked = Draw(run_id, n, seed), asked_of(sweep)
    cells = drawn(all_cells(sweep.prompts, sweep.conditions, sweep.completions), draw)
    sheet = make_sheet(cells, draw, asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(sheet, path)
    page.write_text(label_page(sheet, asked), encoding="utf-8")
    counts = cells.groupby("kind").size().to_dict()
    shares = ", ".join(f"{counts[kind]} of {name}" for kind, name in KINDS.items() if kind in counts)
    say(f"Drew       {len(cells)} texts at random ({shares}), {len(sheet)} of them distinct")
    say(f"Sheet      {path}: fill in {', '.join(question.name for question in asked)}; an empty column is a question not asked")
    say(f"Page       {page}: open it in a browser instead; it saves a CSV")
    say(f"Then       emo-mlflow agree {path} [SECOND_READER.csv] --run-id {run_id}")
