"""What comes from users, files, hubs and runs is data: never code, never a path elsewhere, never markup."""

from __future__ import annotations

import ast
import json
import os
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from hostile import NAMES
from mlflow.projects._project_spec import load_project
from safetensors.numpy import save_file
from synthetic import synthetic_sweep
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow.cli.main import main
from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.common.csv_files import FORMULAS, write_csv
from emo_mlflow.common.names import LONGEST, check_name, file_stem, one_line, printable
from emo_mlflow.directions.files import load_directions, save_directions
from emo_mlflow.errors import UserError
from emo_mlflow.interchange.vector_files import ImportSettings, import_vectors
from emo_mlflow.models.folder import check_depth, read_config
from emo_mlflow.models.loading import KNOWN, check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.prompts.selection import load_prompts
from emo_mlflow.report.blocks import Bullets, Heading, Paragraph, Table, to_html, to_markdown
from emo_mlflow.report.style import new_figure, save
from emo_mlflow.scoring.cards import Card, Head, is_hub_id, load_card, source_key
from emo_mlflow.scoring.onnx import find_scorer
from emo_mlflow.types import Direction

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("emo_mlflow", "evaluators", "bench") for path in (ROOT / folder).rglob("*.py"))

# Calls that run what they read, run a shell, make guessable files, or listen; and where one is meant, with the reason.
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "joblib.load",
    "tempfile.mktemp", "os.tmpnam", "os.chmod", "shutil.unpack_archive", "importlib.import_module", "__import__",
    "subprocess.getoutput", "subprocess.getstatusoutput", "ctypes.CDLL", "marshal.loads", "shelve.open", "runpy.run_path",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "socketserver", "http.server", "ftplib"}
FORBIDDEN_METHODS = {"extractall", "to_pickle", "to_csv", "register_custom_ops_library", "unpack_from_archive"}
MEANT = {
    ("emo_mlflow/interchange/first_system.py", "pickle"): "export-legacy writes pickles, and never reads one",
    ("emo_mlflow/common/csv_files.py", "to_csv"): "the one place that writes CSV",
    ("bench/tracking.py", "listener.bind"): "finds a free port for an MLflow server",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` as it is written; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def offences(source: str) -> set[str]:
    """What a module does that it may not."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found |= {name for name in names if name in FORBIDDEN_MODULES}
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            found |= {name} & FORBIDDEN
            if isinstance(node.func, ast.Attribute):
                found |= {node.func.attr} & FORBIDDEN_METHODS
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            for keyword in ("shell", "allow_pickle", "trust_remote_code"):
                value = keywords.get(keyword)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    found.add(f"{keyword}=")
            if name.endswith(".bind") or name.endswith(".listen"):
                found.add(name)
    return found


def test_the_walk_finds_what_it_is_for():
    """Guards: a rule that holds because it looks at nothing."""
    bad = "import pickle\nyaml.load(x)\nf(shell=True)\nz.extractall()\nm.from_pretrained(p, trust_remote_code=flag)\nt.to_csv(p)"
    assert offences(bad) == {"pickle", "yaml.load", "shell=", "extractall", "trust_remote_code=", "to_csv"}
    assert offences("m.from_pretrained(p, trust_remote_code=False)\nnp.array(1)") == set()
    assert len(SOURCES) > 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    """Guards: torch.load, pickle, yaml.load, a shell, code from a hub, or a server, on a way that nobody looked at."""
    name = path.relative_to(ROOT).as_posix()
    assert {item for item in offences(path.read_text(encoding="utf-8")) if (name, item) not in MEANT} == set()


def test_the_legacy_pickle_is_only_written():
    """Guards: somebody who reads back what export-legacy wrote."""
    source = (ROOT / "emo_mlflow/interchange/first_system.py").read_text(encoding="utf-8")
    used = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and dotted(node.value) == "pickle"}
    assert used == {"dump"}


def test_every_load_of_a_hub_model_says_that_code_is_off():
    """Guards: from_pretrained's default, which asks at the terminal whether to run a folder's code."""
    unsafe = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and dotted(node.func).startswith("Auto") and dotted(node.func).endswith("from_pretrained"):
                keywords = {keyword.arg for keyword in node.keywords}
                if not {"trust_remote_code", "local_files_only"} <= keywords:
                    unsafe.append(f"{path.name}:{node.lineno}")
    assert not unsafe


# Names.


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "C:\\x", "a\x00b", "a\nb", "\u202eevil", "a\u2028b", "$(id)", "<b>", "=1+1", "*",
                                  "\ud800", " ", "", "x" * (LONGEST + 1), "joy.basis", "joy.explained", 7, None])  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(UserError) as caught:
        check_name(name, "emotion")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["joy", "très content", "喜び", "not-so.sad_2", "Joy", "1", "x" * LONGEST])
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


def test_a_card_with_a_path_for_a_name_is_refused(tmp_path):
    """Guards: a card that makes the cache folder of its export anywhere."""
    card = Card("../../x", "a/b", (Head("h", ("a",), "softmax"),))
    heads = ([{"name": "a/b", "labels": ["x"]}], [{"name": "a", "labels": ["x\ny"]}])
    for change in ({"name": "../../x"}, {"revision": "../../x"}, *({"heads": head} for head in heads)):
        payload = {"name": "x", "source": "a/b", "heads": [{"name": "h", "labels": ["a"], "activation": "softmax"}], **change}
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(payload), encoding="utf-8")
        with pytest.raises(UserError, match="not a name|no revision"):
            load_card(tmp_path / "card.yaml")
    assert "/" in card.key  # what would have become of it


def test_a_card_is_plain_data_of_bounded_size(tmp_path):
    """Guards: YAML tags that make objects, aliases of aliases that fill the memory, depth, and dates that are none."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(20)]
    for text in ("\n".join(lines), "!!python/object/apply:os.system ['id']", "[" * 5000, "name: 2020-99-99", "a: *b", "\x00", "- !!binary x"):
        (tmp_path / "card.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            load_card(tmp_path / "card.yaml")


def test_an_export_is_looked_for_in_the_cache_alone(tmp_path, monkeypatch):
    """Guards: a pointer in the cache, or a hub id, that leads out of it."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    write_scorer(tmp_path / "elsewhere")
    home = cache_folder() / "scorers" / source_key("owner/name")
    home.mkdir(parents=True)
    (home / "current").write_text("../../../elsewhere", encoding="utf-8")
    with pytest.raises(UserError, match="does not name an export"):
        find_scorer("owner/name")
    for name in ("../x", "a/..", "./x", "a/b/c", "a" * 300 + "/b"):
        assert not is_hub_id(name)


@pytest.mark.parametrize("name", ["../x", "a\nb", "<script>", "=cmd", "x" * 300])
def test_directions_with_odd_names_are_refused_before_a_sweep(name, tmp_path):
    """Guards: hours of work that MLflow then does not log, since the emotion's name makes no metric."""
    save_file({name: np.ones((2, 4), np.float32)}, str(tmp_path / "d.safetensors"), metadata={"site": "resid_pre"})
    with pytest.raises(UserError, match="direction"):
        load_directions(tmp_path / "d.safetensors")
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "a", "emotion": name}), encoding="utf-8")
    with pytest.raises(UserError, match="emotion"):
        load_prompts(str(tmp_path / "d.jsonl"), max_samples=1)


def test_emotions_that_differ_in_case_stay_two(tmp_path):
    """Guards: a file per emotion, of which a file system that ignores case keeps one."""
    found = {name: Direction(name, "resid_pre", np.full((2, 4), i, np.float32)) for i, name in enumerate(("joy", "Joy", "JOY"))}
    save_directions(tmp_path / "d.safetensors", found, {})
    again = load_directions(tmp_path / "d.safetensors")[0]
    assert [float(again[name].vectors[0, 0]) for name in found] == [0, 1, 2]


@pytest.mark.parametrize("revision", ["../../x", "..", "a b", "a\nb", "/etc", "-x", "a//b"])
def test_revisions_are_no_paths(revision):
    """Guards: a file outside the hub's cache, read as if it held a commit."""
    with pytest.raises(UserError, match="no revision"):
        resolve("gpt2", revision)
    assert resolve("owner/name@refs/pr/1").revision == "refs/pr/1"


@pytest.mark.parametrize("name", ["~nobody-is-called-this/x", "x" * 5000, "a\x00b"])
def test_model_names_that_no_file_system_takes(name):
    """Guards: a traceback of pathlib."""
    result = CliRunner().invoke(main, ["sweep", "--model", name])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception


def test_imported_directions_get_no_path_for_a_name(tmp_path):
    save_file({"layer.0": np.ones(4, np.float32)}, str(tmp_path / "v.safetensors"))
    with pytest.raises(UserError, match="not a name"):
        import_vectors(ImportSettings(tmp_path / "v.safetensors", tmp_path / "o.safetensors", emotion="../x"))


# Models.


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), "gpt2", n_layers=2, d_model=16)


def changed(folder, target, **entries):
    """A copy of a model's folder with other entries in config.json."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | entries))
    return target


def test_code_that_a_tokenizer_brings_along_is_not_run(tiny_folder, tmp_path):
    """Guards: transformers' advice to pass trust_remote_code=True, which is no parameter here; the code is not touched."""
    folder = changed(tiny_folder, tmp_path / "m")
    marker = tmp_path / "executed"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox_japanese"}))
    from emo_mlflow.models.loading import _load_tokenizer

    with pytest.raises(UserError, match=r"auto_map.*trust_remote_code is off"):
        _load_tokenizer(changed(folder, tmp_path / "n", model_type="xglm_of_my_own"))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_attention_kernels_of_a_hub_are_refused(key, tiny_folder, tmp_path):
    """Guards: config.json that has transformers fetch a kernel and run it, whatever trust_remote_code says."""
    with pytest.raises(UserError, match="attention code from a hub"):
        check(resolve(str(changed(tiny_folder, tmp_path / "m", **{key: "evil/kernel"}))))
    nested = {"model_type": "gpt2", "text_config": {key: {"": "evil/kernel@main:f"}}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    with pytest.raises(UserError, match="attention code from a hub"):
        read_config(tmp_path, KNOWN)


def test_a_model_of_a_known_type_ignores_the_code_beside_it(tiny_folder, tmp_path):
    """Guards: a refusal of models that transformers has itself, whose authors left their first code in the folder."""
    folder = changed(tiny_folder, tmp_path / "m", auto_map={"AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text("raise SystemExit('run')")
    assert load(resolve(str(folder)), torch.device("cpu"), torch.float32).n_layers == 2


def test_more_blocks_than_tensors_are_refused_at_once(tiny_folder, tmp_path):
    """Guards: a number in config.json that has transformers build blocks until the memory is full."""
    with pytest.raises(UserError, match="do not belong together"):
        check(resolve(str(changed(tiny_folder, tmp_path / "m", n_layer=2**40))))
    with pytest.raises(UserError, match="num_hidden_layers"):
        check_depth(tmp_path, {"text_config": {"num_hidden_layers": 10**9}}, 400)


def test_weights_elsewhere_are_refused(tiny_folder, tmp_path):
    """Guards: a sharding index that names a file outside the folder."""
    folder = changed(tiny_folder, tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="only safetensors files beside it"):
        check(resolve(str(folder)))


# Classifiers.


def classifier(folder, weights="model.safetensors", **entries):
    """The least that looks like a sequence classifier's folder."""
    folder.mkdir()
    config = {"model_type": "bert", "id2label": {"0": "a", "1": "b"}, "problem_type": "single_label_classification", **entries}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(b"")
    return folder


def test_pickled_classifiers_are_read_only_if_asked(tmp_path):
    """Guards: torch.load on what a hub serves; and an option that does nothing."""
    from emo_mlflow.evaluators.checkpoint import find_checkpoint

    folder = classifier(tmp_path / "c", "pytorch_model.bin")
    with pytest.raises(UserError, match=r"can run code and is read only if asked.*--weights pickle"):
        find_checkpoint(str(folder))
    assert "pytorch_model.bin" in find_checkpoint(str(folder), "pickle").hashes


def test_a_pickle_that_runs_code_does_not_even_if_asked(tmp_path, monkeypatch):
    """Guards: an unrestricted unpickler behind `--weights pickle`."""
    import pickle

    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "c"
    marker = tmp_path / "executed"
    classifier(folder, "pytorch_model.bin", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=16)
    save_tiny(tmp_path / "t", "gpt2", n_layers=1, d_model=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "t" / name).read_bytes())

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"bert.x": Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    result = CliRunner().invoke(main, ["export", "--scorer", str(folder), "--weights", "pickle"])
    assert result.exit_code == 2 and "cannot be loaded" in result.output, (result.output, result.exception)
    assert not marker.exists()


def test_code_that_a_classifier_brings_along_is_not_run(tmp_path):
    """Guards: a prompt at the terminal, `Do you wish to run the custom code?`"""
    from emo_mlflow.evaluators.checkpoint import find_checkpoint

    folder = classifier(tmp_path / "c", model_type="own", auto_map={"AutoModelForSequenceClassification": "own.Own"})
    with pytest.raises(UserError, match=r"auto_map.*trust_remote_code is off"):
        find_checkpoint(str(folder))


# Reports.

TEXTS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![x](https://evil.example/p.png)", "[x](javascript:alert(1))",
    "https://evil.example www.evil.example a@evil.example", "| a | b |", "`code`", "**b** _i_ ~s~", "# heading", "- item", "1. item", "---",
    "    indented", "a\n\n# b", "a\u2028b\r\nc\x85d", "\x1b[31mred\x07", "\u202egnp.exe", "&lt;b&gt;", "$\\frac$ $x$", "\ud800",
    "😀👩‍👩‍👧", "</td></table>",
    "\\", "\\|", "a\x00b", "]]>", "<!--", "{{x}}", "\u2066x\u2069",
)  # fmt: skip


class Seen(HTMLParser):
    """Tags, links and the text that a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", TEXTS)
def test_generated_text_is_shown_and_is_no_markup(text):
    """Guards: scripts, images that call home, links, cells that break out, controls and overrides, in HTML and in Markdown as rendered."""
    markdown = pytest.importorskip("markdown_it")
    blocks = [Heading(text), Paragraph(text), Bullets([text]), Table(["column"], [[text]])]
    page, source = to_html(blocks, Path(), "en"), to_markdown(blocks)
    rendered = markdown.MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(source)
    for document in (page, rendered):
        document.encode()
        seen = Seen()
        seen.feed(document)
        allowed = {"html", "head", "meta", "title", "style", "body", "h2", "p", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td"}
        assert seen.tags <= allowed, source
        assert seen.attributes <= {"charset", "lang", "class"}
        assert printable(seen.text) == seen.text
        shown = " ".join(one_line(text).split())
        assert " ".join(seen.text.split()).count(shown) >= 4, (shown, seen.text)
    for link in ("https://", "www.", "a@"):
        assert link not in source
    rows = [line for line in source.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)\|", row)) == 2 for row in rows)


def test_the_sweeps_report_escapes_what_a_model_wrote(tmp_path):
    """Guards: a column of the examples, a setting, or the note on the run's page that is written without escaping."""
    from dataclasses import replace

    from emo_mlflow.report.sweep import verdicts, write_report

    evil = "<script>alert(1)</script> ![x](http://evil.example/a.png) | $\\frac$"
    sweep = synthetic_sweep("model-a", n_prompts=4, n_layers=2, n_random=1)
    sweep = replace(
        sweep,
        config=replace(sweep.config, model=evil, scorers=(evil,)),
        facts={**sweep.facts, "prompt_source": evil, "device": evil},
        prompts=sweep.prompts.assign(text=evil),
        completions=sweep.completions.assign(completion=evil),
    )
    write_report(sweep, tmp_path)
    for path in sorted(tmp_path.rglob("*.md")) + sorted(tmp_path.rglob("*.html")):
        content = path.read_text(encoding="utf-8")
        assert "<script" not in content and "evil.example" in content
        assert path.suffix == ".html" or "![x]" not in content
    assert "<script" not in "".join(verdicts(sweep))
    assert evil in json.dumps(json.loads((tmp_path / "examples.json").read_text()), ensure_ascii=False).replace("\\\\", "\\")


@pytest.mark.parametrize("name", ["$\\frac$", "a$b$c", "\x00", "\x1b[1m", "a\nb", "\u202ex", "é" * 300])
def test_a_figure_takes_names_literally(name, tmp_path):
    """Guards: a model called `a$b$c` set as a formula, and `$\\frac$` as a crash at the end of a sweep; powers of ten stay set."""
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([1, 2], [1, 1000], label=name)
    axes.set_yscale("log")
    axes.set_xticks([1, 2], [name, "b"])
    axes.set_title(name)
    axes.legend()
    save(figure, tmp_path / "x.png")
    assert not axes.title.get_parse_math() and axes.title.get_text() == printable(name)
    assert any(label.get_parse_math() and "$" in label.get_text() for label in axes.get_yticklabels())


@pytest.mark.parametrize("start", FORMULAS)
def test_csv_texts_are_no_formulas_and_numbers_stay(start, tmp_path):
    """Guards: a model's, scorer's or column's name that a spreadsheet runs, in every table and with every start of a formula."""
    table = pd.DataFrame({"model": [f"{start}cmd|' /C calc'!A0", "gpt2"], "x": [-1.5, 2.0], f"{start}y": [1, 2], "z": [None, -3]})
    table["kind"] = pd.Categorical([f"{start}a", "b"])
    write_csv(table, tmp_path / "t.csv")
    again = pd.read_csv(tmp_path / "t.csv")
    guarded = "'" + start.replace("\r", "\n")  # a bare CR would begin a row
    assert again["model"][0].startswith(guarded) and again["kind"][0] == f"{guarded}a" and again.columns[2] == f"{guarded}y"
    assert again["x"].tolist() == [-1.5, 2.0] and again["z"][1] == -3


# Files, processes, shells.


def test_what_is_cached_is_for_its_owner_alone(tmp_path, monkeypatch):
    """Guards: texts and scores of a study that every user of a shared machine can read."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o022)
    try:
        folder = cache_folder()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


HOSTILE_VALUES = (
    "a b", "'; touch executed; '", '"$(touch executed)"', "`touch executed`", "a\nb", "-x", "--help", "*", "%s",
    "{model}", "é 🙂", "$HOME", "\\", "#x",
)  # fmt: skip


def projects():
    found = [ROOT, *sorted(path.parent for path in (ROOT / "projects").rglob("MLproject"))]
    return [(folder, entry) for folder in found for entry in yaml.safe_load((folder / "MLproject").read_text())["entry_points"]]


@pytest.mark.parametrize(("folder", "entry"), projects(), ids=lambda value: getattr(value, "name", value))
def test_parameters_of_every_entry_point_reach_the_command_as_they_are(folder, entry, tmp_path):
    """Guards: a parameter that MLproject hands to the shell without quotes: cut in two, expanded, or run."""
    report = "import json, sys\nopen('calls', 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    program = tmp_path / "bin" / "emo-mlflow"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{report}", encoding="utf-8")
    program.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("")
    parameters = yaml.safe_load((folder / "MLproject").read_text())["entry_points"][entry].get("parameters", {})
    point = load_project(str(folder)).get_entry_point(entry)
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    def calls(value):
        (place / "calls").unlink(missing_ok=True)
        command = point.compute_command(dict.fromkeys(parameters, value), None)
        subprocess.run(["bash", "-c", command], cwd=place, env=environment, capture_output=True, check=True)
        return [json.loads(line) for line in (place / "calls").read_text().splitlines()]

    plain = calls("plain")
    assert plain
    for value in HOSTILE_VALUES:
        assert calls(value) == [[word.replace("plain", value) for word in call] for call in plain], value
    assert not (place / "executed").exists()


def test_arguments_that_are_no_text_are_refused(tmp_path):
    """Guards: bytes that are no UTF-8 on the command line, which fail hours later, where the report is written."""
    command = [sys.executable, "-m", "emo_mlflow.cli.main", "sweep", "--model", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and b"UTF-8" in done.stderr and b"Traceback" not in done.stderr
