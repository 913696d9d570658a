"""`emo-mlflow study`: from settings to an answer per emotion in one MLflow run; what is written is kept on disk, and a stopped study goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_mlflow.common import progress
from emo_mlflow.common.termination import interruptible, terminable
from emo_mlflow.errors import UserError
from emo_mlflow.settings.declared import table_of
from emo_mlflow.settings.study import Budget, StudySettings, make_study
from emo_mlflow.settings.templates import form_line
from emo_mlflow.sweeping.resume import discard, is_run_id, sole_worker, spool_folder
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.types import Say, digest

if TYPE_CHECKING:
    from emo_mlflow.studying.plan import StudyPlan
    from emo_mlflow.tracking.study import StudyRun


def run_study_command(given: Mapping[str, str | None], tracking_uri: str | None, experiment: str | None, say: Say) -> str:
    """Does a study and logs it as a run, whose id it returns; on a user's mistake the run that `mlflow run` made, if any, says what it was.

    Raises:
        UserError: for anything that the user can mend.
        KeyboardInterrupt: after saying how to go on.
    """
    from emo_mlflow.tracking.lifecycle import mark_failed
    from emo_mlflow.tracking.retries import own_retries
    from emo_mlflow.tracking.store import check_store

    texts = {name: text for name, text in given.items() if text}
    with own_retries(), terminable(), progress.bars():
        try:
            settings = make_study(texts)
            run_id = None
            if settings.resume != "none":
                run_id = _checked(settings.resume)
                texts = _started_with(run_id, texts)
                settings = make_study(texts)
            check_store(tracking_uri)
            return _study(settings, texts, run_id, tracking_uri, experiment, say)
        except UserError as error:
            mark_failed(str(error), tracking_uri)
            raise


def _checked(run_id: str) -> str:
    if not is_run_id(run_id):
        raise UserError(f"resume={run_id!r} is neither none nor the id of a run: ids have 32 hexadecimal digits")
    return run_id


def _started_with(run_id: str, given: Mapping[str, str]) -> dict[str, str]:
    """The parameters that a study was started with; those given beside `resume` may only say how, not what."""
    started = dict(Spool(spool_folder(run_id)).header()["given"])
    table = table_of(StudySettings)
    for name, text in given.items():
        if not table[name].how and started.get(name) != text:
            raise UserError(
                f"{name}={text!r} is not what run {run_id} was started with ({started.get(name) or 'its default'}): leave it out, or start another"
            )
    return {**started, **given}


def _study(
    settings: StudySettings, given: Mapping[str, str], run_id: str | None, tracking_uri: str | None, experiment: str | None, say: Say
) -> str:
    from emo_mlflow.cluster.connection import check_ray
    from emo_mlflow.studying.cost import fit_to_budget, plan_lines, seconds_per_text
    from emo_mlflow.studying.plan import lay_out, prepare_study
    from emo_mlflow.tracking.lifecycle import resume_command
    from emo_mlflow.tracking.store import as_active
    from emo_mlflow.tracking.study import STUDY, StudyRun

    if settings.engine == "ray":
        check_ray(settings.ray_address)
    with as_active(tracking_uri):  # for scorers that are logged models
        inputs = prepare_study(settings)
    settings = inputs.settings
    say(f"Reference  {inputs.prompts.compared_with}")
    if "template" in given:
        say(f"Template   {form_line(settings)}")
    say(f"Model      loading it, and fitting directions on {len(inputs.prompts.fit)} texts")
    plan = lay_out(inputs)
    design, cost = fit_to_budget(plan.design, settings.budget, seconds_per_text(plan.stack, settings.sequence_length))
    plan = replace(plan, design=design, arms=replace(plan.arms, design=design))
    lines = plan_lines(design, cost)
    with StudyRun.open(settings.model, tracking_uri, experiment, run_id) as run, sole_worker(run.run_id):
        spool = Spool(spool_folder(run.run_id))
        work = digest([design.design_id, plan.loaded.fingerprint, dict(inputs.scorers.fingerprints)])
        spool.begin({"work": work, "run_id": run.run_id, "kind": "study", "given": dict(given), "store": run.client.tracking_uri})
        say(f"Run        {run.run_id}")
        for line in lines:
            say(f"Design     {line}")
        if run.fix(design, _as_params(settings)):
            say("Design     it is another than when this run was begun: its report says so")
        try:
            with interruptible():
                _work(plan, run, spool, lines, settings, say)
        except KeyboardInterrupt:
            say(f"Stopped; what was finished is kept. Go on with: {resume_command(STUDY, run.run_id)}")
            raise
        discard(spool_folder(run.run_id))
    return run.run_id


def _as_params(settings: StudySettings) -> dict[str, Any]:
    """Settings as a person writes them."""
    return {name: _text(value) for name, value in vars(settings).items()}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{item:g}" if name else f"{item:g}" for name, item in value.items()) or "auto"
    if isinstance(value, Budget):
        return f"{value.amount:g}{value.unit}"
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _work(plan: StudyPlan, run: StudyRun, spool: Spool, lines: Sequence[str], settings: StudySettings, say: Say) -> None:
    from emo_mlflow.report.study import study_lines
    from emo_mlflow.studying.run import run_study

    done = [completion for pack in spool.completions() for completion in pack]

    def on_progress(there: int, total: int) -> None:
        progress.reached(progress.WRITING, there, total)

    with ExitStack() as stack:
        write = _on_cluster(plan, settings, stack) if settings.engine == "ray" else None
        result, _ = run_study(plan, lines, done, spool.keep, on_progress, say, write)
    with tempfile.TemporaryDirectory() as folder:
        run.log(result, Path(folder), _as_params(settings))
    for line in study_lines(result):
        say(line)
    say(f"Report     {run.artifact_uri}/report.html")


def _on_cluster(plan: StudyPlan, settings: StudySettings, stack: ExitStack) -> Callable[..., Any]:
    """Writes rows on a Ray cluster, to which this process is connected until `stack` is closed."""
    from emo_mlflow.cluster.connection import connected
    from emo_mlflow.cluster.rows import RowWriter
    from emo_mlflow.studying.run import decoding_of, engine_of

    stack.enter_context(connected(settings.ray_address))
    return RowWriter(plan.loaded, settings.device, settings.dtype, decoding_of(plan), engine_of(plan).packs)
