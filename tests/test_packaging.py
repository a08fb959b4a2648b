"""What a release is made by: the script, the workflow and the hooks say what is there."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def release(tmp_path, monkeypatch):
    """The release script, at work on a copy."""
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module, tmp_path


def test_a_release_names_the_repository_and_leaves_no_relative_link(release):
    module, folder = release
    base = "https://example.org/someone/jaxlimit"
    module.main(base, "v1.2.3")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Repository"] == base
    assert project["urls"]["Changelog"] == f"{base}/blob/v1.2.3/CHANGELOG.md"
    assert project["urls"]["Paper"].startswith("https://")
    text = re.sub(r"```.*?```", "", (folder / "README.md").read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert all(re.match(r"https?://|#|mailto:", link) for link in links)
    for image in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
        path = image.removeprefix(f"{base}/raw/v1.2.3/")
        assert (ROOT / path).exists(), image


def test_the_workflow_makes_targets_that_are_there():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs, made = workflow["jobs"], set()
    for name, job in jobs.items():
        assert set(job.get("needs", ())) <= set(jobs), name
        for step in job["steps"]:
            made |= set(re.findall(r"make (\w+)", step.get("run", "")))
    assert {"test", "lint", "docs", "smoke"} == made <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    versions = [c.removeprefix(prefix) for c in project["classifiers"] if c.startswith(prefix)]
    assert jobs["test"]["strategy"]["matrix"]["python"] == versions
    assert f">={min(versions)}" == project["requires-python"]


def test_the_hooks_call_what_is_there():
    yaml = pytest.importorskip("yaml")
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    local = next(repo for repo in repos if repo["repo"] == "local")
    assert {hook["id"] for hook in local["hooks"]} == {"ruff-check", "ruff-format", "layers"}
    for hook in local["hooks"]:
        assert {"id", "name", "entry", "language"} <= set(hook)
        for path in re.findall(r"tests/\S+\.py", hook["entry"]):
            assert (ROOT / path).exists()
    assert all("rev" in repo for repo in repos if repo["repo"] != "local")


def test_every_extra_of_another_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for needed in extras.values():
        for group in re.findall(r"jaxlimit\[([\w,]+)\]", " ".join(needed)):
            assert set(group.split(",")) <= set(extras)
    pinned = {
        re.split(r"[=<>]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    named = {
        re.split(r"[=<>\[ ]", name)[0].lower().replace("_", "-")
        for group in ("train", "data", "plot", "study", "dev")
        for name in extras[group]
    }
    assert named <= pinned, named - pinned
