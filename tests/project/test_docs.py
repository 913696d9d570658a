"""The documentation: its example runs against a real server, its links lead somewhere, and it names what there is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from servers import running_server
from synthetic import synthetic_sweep

from emo_mlflow.settings.profiles import PROFILES
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.settings.tables import ENTRY_POINTS, PARAMETERS
from emo_mlflow.tracking.sweep_run import SweepRun

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WIDTH_OF_CODE = 120
BYTES_OF_A_PICTURE, BYTES_OF_ALL = 200_000, 3_000_000


@pytest.mark.slow
def test_the_example_reads_a_sweep_from_a_remote_server(tmp_path):
    """Guards against code in the documentation that only works beside the files of the store."""
    with running_server(tmp_path) as server:
        result = synthetic_sweep("smollm2-135m", n_prompts=4, n_layers=3, n_random=2)
        with SweepRun.open(result.config, tracking_uri=server.uri) as run:
            run.log(result)
        command = [sys.executable, str(DOCS / "examples" / "read_a_sweep.py"), server.uri, "smollm2-135m", "out"]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 sweeps of smollm2-135m" in done.stdout and "largest rise: +0." in done.stdout
    made = {path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*") if path.is_file()}
    figures = {f"out/figures/{name}.png" for name in ("against_random", "layers", "price")}
    assert made == figures | {"out/report.html", "out/gratitude_by_layer.png"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_pictures_are_there(page):
    """Strict mkdocs says so too, where it is installed."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (DOCS / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_parameters_in_commands_are_known(page):
    """A command in a document that nothing checks outlives the parameter that it names."""
    for command in re.findall(r"^mlflow run \. (?!.*-e ).*$", page.read_text(encoding="utf-8"), flags=re.M):
        given = dict(re.findall(r"-P (\w+)=(\S+)", command))
        assert set(given) <= {*PARAMETERS, "profile"}, command
        assert make_config(given.pop("profile", "smoke"), {k: v for k, v in given.items() if v != "RUN_ID"})


def test_every_page_is_in_the_navigation():
    """A page that nothing leads to is not read."""
    listed = set(re.findall(r"[\w-]+\.md", yaml.safe_dump(_configuration()["nav"])))
    assert listed == {page.name for page in PAGES}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_the_tables_of_parameters_have_them_all(entry):
    """Each is a row with an address of its own, so that a link can name it."""
    page = (DOCS / f"{'parameters' if entry == 'main' else entry}.md").read_text(encoding="utf-8")
    [(command, table)] = re.findall(r"<!-- parameters of (\w+) -->\n\n(.*?)\n\n<!-- end -->", page, flags=re.S)
    assert command == ENTRY_POINTS[entry].command
    assert re.findall(r'^\| <a id="(\w+)" href="#\1">`\1`</a> \|', table, flags=re.M) == list(ENTRY_POINTS[entry].parameters)
    assert all(profile in table.splitlines()[0] for profile in PROFILES) == bool(ENTRY_POINTS[entry].profiles)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_comes_from_the_code_is_as_the_code_has_it(page):
    """Guards: a parameter, a column, an example or a signature that changed, and whose page did not."""
    text = page.read_text(encoding="utf-8")
    assert text == generated().renewed(text), "python docs/site/generated.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_are_plain_markdown(page):
    """A code host shows the pages as they are: what only a site's builder understands stands there as it is written."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert not re.search(r"^(:::|!!!|\?\?\?|===|---$|\s*-*8<-)|<div|\{\s*[.:#]", text, flags=re.M)
    for line in re.findall(r"^<!-- .* -->$", text, flags=re.M):
        assert generated().MADE_HERE.search(f"{line}\n<!-- end -->") or line == "<!-- end -->", line


@pytest.mark.parametrize("page", [*PAGES, DOCS.parent / "README.md"], ids=lambda path: path.name)
def test_code_is_not_cut_on_a_page(page):
    """As many columns are seen on the site in a window of 1400 pixels, and on a code host in a wider one."""
    for block in re.findall(r"^```\w*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S | re.M):
        assert [line for line in block.splitlines() if len(line) > WIDTH_OF_CODE] == []


def test_every_column_of_the_artifacts_is_documented():
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    documented = {name for text in texts for name in re.findall(r"<!-- columns of (\w+) -->", text)}
    assert documented == {*generated().DECLARED} - {"fit_prompts"}, "which has the columns of prompts"


def generated() -> ModuleType:
    """The module of the documentation's folder that makes its tables."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "site" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_fetched_when_a_page_is_read():
    """No fonts and no scripts from elsewhere: the documentation is read where there is no network."""
    configuration = _configuration()
    assert configuration["theme"]["font"] is False and "offline" not in configuration["plugins"]  # which loads a script from elsewhere
    own = [*configuration.get("extra_css", []), *configuration.get("extra_javascript", [])]
    assert all((DOCS / name).is_file() for name in own)


def test_pictures_stay_small():
    """The history of a repository keeps every version of every picture."""
    sizes = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert max(sizes.values()) <= BYTES_OF_A_PICTURE and sum(sizes.values()) <= BYTES_OF_ALL, sizes


def _configuration() -> dict:
    return yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"))
