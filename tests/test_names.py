"""Public names of version 0.1 are still found, where they were; those that moved warn."""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

# One line a module: its dotted name, then the names that it offered.
LINES = (Path(__file__).parent / "fixtures" / "names-0.1.txt").read_text().splitlines()
OFFERED = {line.split()[0]: line.split()[1:] for line in LINES}


@pytest.mark.parametrize("module", OFFERED)
def test_names_of_version_0_1_are_importable(module):
    if module.endswith(("plotting", "reporting")):
        pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = importlib.import_module(module)
        missing = [name for name in OFFERED[module] if not hasattr(found, name)]
    assert not missing


def test_a_module_that_moved_warns_by_every_form_of_import():
    code = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
for line in ("import jaxlimit.lomp", "from jaxlimit.operators import to_scipy",
             "from jaxlimit import estimation"):
    try:
        exec(line)
    except DeprecationWarning as told:
        assert "is now jaxlimit." in str(told), told
    else:
        raise AssertionError(line)
warnings.simplefilter("ignore", DeprecationWarning)
import jaxlimit.lomp, jaxlimit.pruning.lomp
assert jaxlimit.lomp is jaxlimit.pruning.lomp
assert jaxlimit.pruning.lomp.__name__ == "jaxlimit.pruning.lomp"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
