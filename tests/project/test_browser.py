"""What a person does in MLflow's UI, in a real Chromium: sweeps compared, a sweep's page opened, its conditions filtered.

Pictures for the documentation: `EMO_SCREENSHOTS=docs/images EMO_STORE=FOLDER pytest -m browser`, where FOLDER holds the mlflow.db and
the artifacts/ of a server to which the sweeps to be shown were logged; without EMO_STORE, two sweeps of random models are made.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from places import write_texts
from servers import running_server
from tiny_models import save_tiny

from emo_mlflow import find_sweeps, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.tracking.reading import Sweep

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The UI for training rather than for chat applications, and its assistant's panel closed; the tests hold without.
STORAGE = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}
PATIENCE = 180_000  # milliseconds: a limit, for two cores that others use too
METRIC = "effect.gratitude.goemotions.gratitude"
SIZE = {"width": 1280, "height": 800}
WHOLE = """link => {
    for (let part = link; part.getAttribute('role') !== 'gridcell'; part = part.parentElement)
        if (part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).overflow !== 'visible') return false;
    return true;
}"""
CURVES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => ({
    axis: plot.layout.xaxis.title ? plot.layout.xaxis.title.text : null,
    curves: plot.data.map(curve => ({name: curve.name, x: [...curve.x], y: [...curve.y]}))}))"""


@dataclass(frozen=True)
class Place:
    """A server's address and two finished sweeps on it."""

    uri: str
    sweeps: tuple[Sweep, Sweep]

    @property
    def experiment(self) -> str:
        return str(self.sweeps[0].run.info.experiment_id)


def sweep_tiny_models(folder: Path, uri: str) -> None:
    """Two sweeps of random models, as a person would type them."""
    write_texts(folder, ("gratitude", "anger", "neutral"))
    for seed, (name, family) in enumerate({"gpt-neo-125m": "gpt_neo", "pythia-160m": "gpt_neox"}.items()):
        save_tiny(folder / "models" / name, family, seed=seed, n_layers=13)
        command = [
            *("sweep", "--model", str(folder / "models" / name), "--dataset", str(folder / "data.jsonl"), "--profile", "seed"),
            *("--emotions", "gratitude,anger", "--layers", "0-12/3", "--alphas", "8", "--sequence-length", "6"),
            *("--max-samples", "3", "--num-random", "1", "--device", "cpu", "--tracking-uri", uri, "--experiment", "emotions"),
        ]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The store that is shown, served."""
    given = os.environ.get("EMO_STORE")
    folder = Path(given) if given else tmp_path_factory.mktemp("store")
    with running_server(folder) as server:
        uri = server.uri
        if not given:
            sweep_tiny_models(folder, uri)
        newest = find_sweeps(tracking_uri=uri).head(2)
        first, second = (load_sweep(run_id, uri) for run_id in newest["run_id"])
        yield Place(uri, (first, second))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """A page of a new browser profile."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            headless=True,
            args=list(FLAGS),
            viewport=SIZE,
            device_scale_factor=1.25,
        )
        browser.set_default_timeout(PATIENCE)
        browser.add_init_script("".join(f"localStorage.setItem({key!r}, {value!r});" for key, value in STORAGE.items()))
        yield browser.pages[0]
        browser.close()


def picture(page: Any, name: str, height: int = SIZE["height"], width: int = SIZE["width"]) -> None:
    """Writes what is shown, if pictures were asked for, in 256 colours: a third of the bytes."""
    if folder := os.environ.get("EMO_SCREENSHOTS"):
        from PIL import Image

        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path, clip={"x": 0, "y": 0, "width": width, "height": height})
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def choose(page: Any, sweep: Sweep) -> None:
    """Ticks a run in the table of runs."""
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=sweep.run.info.run_name, exact=True))
    row.get_by_role("checkbox", name="toggle row selection").click()


def scroll_to(page: Any, link: Any, inside: Any) -> None:
    """Scrolls a list that renders only what is visible until it has the link."""
    end = time.monotonic() + PATIENCE / 1000
    while not link.count():
        assert time.monotonic() < end, "not in the list"
        inside.evaluate("list => { list.scrollTop += 200 }")
        page.wait_for_timeout(100)


def profile(sweep: Sweep) -> tuple[list[int], list[float]]:
    """Layers and effects as the sweep's tables have them."""
    effects = sweep.effects.merge(sweep.conditions, on="condition_id")
    emotion, _, metric = METRIC.removeprefix("effect.").partition(".")
    own = effects[(effects["kind"] == "emotion") & (effects["emotion"] == emotion) & (effects["metric"] == metric)]
    own = own.sort_values("layer")
    return own["layer"].astype(int).tolist(), own["mean_diff"].tolist()


def expect_profiles(page: Any, sweeps: tuple[Sweep, Sweep]) -> None:
    """One chart has a curve per sweep, its x the layers and its y the effects."""
    names = [sweep.run.info.run_name for sweep in sweeps]
    page.wait_for_function(
        f"names => ({CURVES})().some(plot => names.every(name => plot.curves.some(curve => (curve.name ?? '').startsWith(name))))",
        arg=names,
        timeout=PATIENCE,
    )
    (chart,) = page.evaluate(CURVES)
    assert chart["axis"] == "Step"
    curves = {curve["name"].split(" (")[0]: curve for curve in chart["curves"] if curve.get("name")}  # a run's may be drawn twice, one over the other
    assert set(curves) == set(names)
    for sweep in sweeps:
        layers, effects = profile(sweep)
        curve = curves[sweep.run.info.run_name]
        assert len(layers) > 3 and curve["x"] == layers and curve["y"] == pytest.approx(effects, abs=1e-9)


def test_two_sweeps_compared_overlay_their_layer_profiles(page: Any, place: Place) -> None:
    """Guards against metrics whose names differ between sweeps, or whose step is not the layer."""
    page.goto(f"{place.uri}/#/experiments/{place.experiment}/runs")
    for sweep in place.sweeps:
        choose(page, sweep)
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="Comparing 2 Runs").wait_for()
    for name in ("Visualizations", "Run details", "Parameters"):
        page.get_by_role("button", name=name, exact=True).click()
    link = page.get_by_role("link", name=METRIC, exact=True)
    scroll_to(page, link, page.get_by_role("grid").last)  # the column of values is what scrolls
    link.dispatch_event("click")  # the table moves its rows while it scrolls, so that a mouse can miss the link
    page.get_by_role("heading", name=METRIC).first.wait_for()
    expect_profiles(page, place.sweeps)
    picture(page, "ui_profiles", 480)


def test_the_saved_view_has_a_column_per_emotion_and_whole_names(page: Any, place: Place) -> None:
    """Guards against a form of the view that MLflow does not read: it would show an error, or its own columns."""
    page.set_viewport_size({**SIZE, "width": 1400})
    page.goto(f"{place.uri}/#/experiments/{place.experiment}/runs")
    page.get_by_role("main").get_by_text("Views").click()
    page.get_by_text("Answers", exact=True).click()
    for emotion in ("gratitude", "anger"):
        page.get_by_role("columnheader").get_by_text(f"emo.answer.{emotion}").wait_for()
    for sweep in place.sweeps:
        answer = sweep.run.data.tags["emo.answer.gratitude"]
        row = page.get_by_role("row").filter(has=page.get_by_role("gridcell").get_by_text(answer))
        row.first.wait_for()
        name = page.get_by_role("link", name=sweep.run.info.run_name, exact=True)
        assert name.evaluate(WHOLE), "cut off"
    picture(page, "ui_answers", 420, 1400)


def test_the_charts_of_two_sweeps_overlay_too(page: Any, place: Place) -> None:
    """The same without the page for comparison: charts beside the table of runs."""
    page.goto(f"{place.uri}/#/experiments/{place.experiment}/runs?compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill(METRIC)
    expect_profiles(page, place.sweeps)
    picture(page, "ui_charts", 660)


def test_a_sweep_opens_its_description_figures_report_and_examples(page: Any, place: Place) -> None:
    """Guards against artifacts that MLflow's viewers do not show: a table that is none, pictures that are not found."""
    sweep = place.sweeps[1]
    page.goto(f"{place.uri}/#/experiments/{place.experiment}/runs/{sweep.run_id}")
    main = page.get_by_role("main")
    main.get_by_role("listitem").filter(has_text="gratitude:").first.wait_for()
    picture(page, "ui_run")

    page.get_by_role("tab", name="Artifacts").click()
    files = main.get_by_role("listitem")
    files.filter(has_text="examples.json").last.get_by_text("examples.json").click()
    for name in ("prompt", "baseline", "patched"):
        main.get_by_role("columnheader").get_by_role("button", name=name, exact=True).wait_for()
    assert main.get_by_role("checkbox", name="View as table").is_checked()
    table = json.loads(sweep._fetch("examples.json").read_text(encoding="utf-8"))
    main.get_by_text(table["data"][0][table["columns"].index("prompt")]).first.wait_for()
    picture(page, "ui_examples")

    files.filter(has_text="report.md").last.get_by_text("report.md").click()
    main.get_by_role("heading", name="Sweep of").wait_for()
    assert main.get_by_role("row").filter(has_text="random controls").count() == 1

    files.filter(has_text="report.html").last.get_by_text("report.html").click()
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="Sweep of").wait_for()
    pictures = report.get_by_role("img")
    assert pictures.count() == 3
    assert all(pictures.nth(i).evaluate("image => image.complete && image.naturalWidth > 300") for i in range(3))
    picture(page, "ui_report")

    files.filter(has_text="figures").first.get_by_text("figures").click()
    main.get_by_text("layers.png").last.click()
    shown = main.get_by_role("img", name="layers.png")
    shown.wait_for()
    page.wait_for_function("() => [...document.querySelectorAll('main img')].some(image => image.naturalWidth > 600)")


def test_conditions_are_filtered_by_emotion_and_layer(page: Any, place: Place) -> None:
    """Guards against children without the parameters of their condition, and against names that the table cuts off."""
    page.goto(f"{place.uri}/#/experiments/{place.experiment}/runs")
    for sweep in place.sweeps:  # what is typed before the first answer is overwritten by it
        page.get_by_role("link", name=sweep.run.info.run_name, exact=True).wait_for()
    search = page.get_by_role("combobox", name="metrics.rmse")
    layer = max(set.intersection(*({int(layer) for layer in sweep.config["layers"]} for sweep in place.sweeps)))
    search.fill(f'params.emotion = "gratitude" and params.layer = "{layer}"')
    search.press("Enter")
    page.wait_for_function("() => /\\b4\\s+matching runs/.test(document.body.innerText)")  # two children and their parents
    for sweep in place.sweeps:
        cell = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name=sweep.run.info.run_name, exact=True))
        cell.get_by_role("button").first.click()
    page.wait_for_function("() => document.querySelectorAll('a[href*=\"/runs/\"]').length >= 4")
    names = [link.inner_text() for link in page.get_by_role("main").get_by_role("link").all() if "/runs/" in link.get_attribute("href")]
    children = [name for name in names if " sweep" not in name]
    assert len(children) == 2 and all(name.startswith(f"gratitude L{layer} ") for name in children)
    picture(page, "ui_filter", 420)
