"""Every script: it is thin, and asked for help it runs nothing and changes nothing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "experiments").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
PEERS = ("torch", "pyhessian", "curvlinops", "matfree")


def imported(path):
    """Return the top-level names that a script imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_no_other_and_no_peer(path):
    names = imported(path)
    assert not names & {other.stem for other in SCRIPTS}
    assert not names & {*PEERS, "matplotlib"}
    assert "sys.path" not in path.read_text()
    assert "json.load" not in path.read_text(), "results are read by jaxlimit.lab.results"


def state(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".pyc"}


# One process for all, since each would take seconds for its imports alone.
ASK_EACH = """
import contextlib, io, runpy, sys
from jax._src import xla_bridge
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(path, run_name="__main__")
        code = "did not exit"
    except SystemExit as end:
        code = end.code
    assert not code, f"{path}: {code}"
    assert "--help" in said.getvalue(), path
    assert not xla_bridge.backends_are_initialized(), f"{path} computed something"
    slow = {"orbax.checkpoint", "sklearn", "tensorflow_datasets"} & set(sys.modules)
    assert not slow, f"{path} imported {slow}, which takes seconds"
"""


def test_help_of_every_script_runs_nothing(tmp_path):
    """Where no peer can be imported."""
    pytest.importorskip("tyro")
    for peer in PEERS:
        (tmp_path / f"{peer}.py").write_text("raise ImportError('not installed here')")
    folders = [ROOT / name for name in ("experiments", "benchmarks", "docs")]
    before = [state(folder) for folder in folders]
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ASK_EACH, *map(str, SCRIPTS)],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": "cpu"},
        cwd=work,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert [state(folder) for folder in folders] == before
    assert not list(work.iterdir())
