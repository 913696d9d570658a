"""What is read is never run: no module loads code, unpickles, opens a shell or listens, but where it is meant."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("emo_mlflow", "evaluators", "bench") for path in (ROOT / folder).rglob("*.py"))

# Calls that run what they read, run a shell, make guessable files, or listen; and where one is meant, with the reason.
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "joblib.load",
    "tempfile.mktemp", "os.tmpnam", "os.chmod", "shutil.unpack_archive", "importlib.import_module", "__import__",
    "subprocess.getoutput", "subprocess.getstatusoutput", "ctypes.CDLL", "marshal.loads", "shelve.open", "runpy.run_path",
    "pickle.load", "pickle.loads", "pickle.Unpickler",
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
            if name.startswith("Auto") and name.endswith("from_pretrained") and not {"trust_remote_code", "local_files_only"} <= set(keywords):
                found.add(name)  # its default asks at the terminal whether to run a folder's code
    return found


def test_the_walk_finds_what_it_is_for():
    """Guards: a rule that holds because it looks at nothing."""
    bad = "import pickle\nyaml.load(x)\nf(shell=True)\nz.extractall()\nm.from_pretrained(p, trust_remote_code=flag)\nt.to_csv(p)"
    assert offences(bad) == {"pickle", "yaml.load", "shell=", "extractall", "trust_remote_code=", "to_csv"}
    assert offences("pickle.loads(x)\nAutoModel.from_pretrained(p)") == {"pickle.loads", "AutoModel.from_pretrained"}
    assert offences("AutoModel.from_pretrained(p, trust_remote_code=False, local_files_only=True)\nnp.array(1)") == set()
    assert len(SOURCES) > 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    """Guards: torch.load, pickle, yaml.load, a shell, code from a hub, or a server, on a way that nobody looked at."""
    name = path.relative_to(ROOT).as_posix()
    assert {item for item in offences(path.read_text(encoding="utf-8")) if (name, item) not in MEANT} == set()
