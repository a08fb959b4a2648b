"""Minutes from `pip install` to an answer, by the wheel alone, as a new user goes.

The network is the one of `jaxlimit new nnx`: a small convolutional network trained with Adam, its
checkpoint written by Orbax. Builds the wheel, makes an environment outside of the repository,
installs the wheel with its extras, and then times `new`, `study`, `prune` and loading the result.
Needs the package index, or `--find-links` of a folder of wheels.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment

ROOT = Path(__file__).parents[1]

# What the user writes by hand, to use what came out.
OWN_LINES = """\
from jaxlimit import formats
from my_model import accuracy, task

given = task()
pruned = formats.load("my_model-pruned.orbax", like=given.params).params
right = [float(accuracy(pruned, batch)) * len(batch[1]) for batch in given.held_out]
print(sum(right) / sum(len(batch[1]) for batch in given.held_out))
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the way from nothing to a pruned network that is loaded again."""

    library: str = "nnx"
    """linen, nnx or equinox."""
    find_links: Path | None = None
    """Folder of wheels to install from, in place of the index."""
    settings: tuple[str, ...] = ()
    """Further settings of the study, such as --num-steps 64."""
    output: Path = ROOT / "benchmarks" / "results" / "first_answer.json"


def main(config: Config) -> None:
    """Run every step, and write what each took."""
    with tempfile.TemporaryDirectory() as name:
        seconds, said = walk(config, Path(name))
    result = {
        "library": config.library,
        "lines": len([line for line in OWN_LINES.splitlines() if line]),
        "before": {"lines": 58, "minutes": 8.0, "of": "jaxlimit 0.1, to ρ* alone"},
        "minutes": sum(seconds.values()) / 60,
        "seconds": seconds,
        "load_average": os.getloadavg(),
        "settings": config.settings,
        "said": said,
        "environment": environment(),
    }
    write_json(config.output, result)
    print(json.dumps(result, indent=1, ensure_ascii=False))


def walk(config: Config, folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Go the way; return the seconds of each step and what it printed."""
    seconds, said = {}, {}

    def step(name: str, *command: object, cwd: Path = folder) -> None:
        began = time.perf_counter()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_"))}
        done = subprocess.run(
            [*map(str, command)], cwd=cwd, env=clean | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stdout}")
        seconds[name] = time.perf_counter() - began
        said[name] = done.stdout.replace(f"{folder}/", "")

    index = () if config.find_links is None else ("--no-index", "--find-links", config.find_links)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--wheel-dir", folder)
    step("build", *pip, *build, ROOT)
    del seconds["build"]  # the user gets the wheel as it is
    (wheel,) = folder.glob("jaxlimit-*.whl")
    step("environment", sys.executable, "-m", "venv", folder / "venv")
    python, command = folder / "venv/bin/python", folder / "venv/bin/jaxlimit"
    equinox = ("equinox",) if config.library == "equinox" else ()
    step("install", python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install",
         *index, "-c", ROOT / "constraints.txt", f"{wheel}[all]", *equinox)  # fmt: skip
    empty = folder / "empty"
    empty.mkdir()
    step("new", command, "new", config.library, cwd=empty)
    step("study", command, "study", "my_model.py:task", *config.settings, cwd=empty)
    step("prune", command, "prune", "my_model.py:task", cwd=empty)
    (empty / "use.py").write_text(OWN_LINES.replace(".orbax", _suffix(empty)))
    step("load", python, "use.py", cwd=empty)
    for name in ("build", "environment", "install"):
        del said[name]
    accuracy = f"accuracy: {100 * float(said['load']):.3g} %"
    if accuracy not in said["prune"]:
        sys.exit(f"loaded again it is {accuracy}, prune said:\n{said['prune']}")
    return seconds, said


def _suffix(folder: Path) -> str:
    (found,) = (p for p in folder.glob("my_model-pruned.*"))
    return found.suffix


if __name__ == "__main__":
    main(tyro.cli(Config))
