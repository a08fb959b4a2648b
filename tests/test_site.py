"""The site: every public name has its entry, every page its place, and tutorials are current."""

import importlib.util
import re
from pathlib import Path

import pytest

import jaxlimit

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def api_pages():
    spec = importlib.util.spec_from_file_location("api_pages", DOCS / "api_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_an_entry(api_pages, tmp_path):
    api_pages.write(tmp_path)
    listed = (tmp_path / "index.md").read_text()
    for module in api_pages.modules():
        assert f"\n{module}\n" in listed
        text = (tmp_path / f"{module}.md").read_text()
        headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
        loaded = importlib.import_module(module)
        if hasattr(loaded, "__all__"):
            modules = {name for name in loaded.__all__ if f"jaxlimit.{name}" in api_pages.modules()}
            wanted = set(loaded.__all__) - (modules if module == "jaxlimit" else set())
            assert set(headings) == wanted, module
        assert len(headings) == len(set(headings))
    assert "jaxlimit.studies" in api_pages.modules()
    assert set(jaxlimit.__all__) >= {"study", "compare", "Task"}


def test_every_page_has_a_place():
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            lines = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {str((page.parent / line).relative_to(DOCS)) for line in lines}
    names = (page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md"))
    pages = {str(name) for name in names if not {"api", "jupyter_execute"} & set(name.parts)}
    assert pages - listed == {"index"}


NAME = r"[A-Z][\w'’]*[a-zé]"
CITED = re.compile(
    rf"((?:{NAME},\s+(?:#\s+)?)*{NAME}(?:\s+et\s+al\.)?)\s+\(?((?:1[89]|20)\d\d)\b(.)"
)


def test_works_are_cited_in_one_style_and_listed_on_one_page():
    lines = (DOCS / "references.md").read_text().splitlines()
    listed = [match[1] for line in lines if (match := re.match(r"- (.+? \(\d{4}\))\. ", line))]
    assert listed == sorted(listed, key=str.lower)
    assert len(listed) == len(set(listed)) > 50
    cited, wrong = set(), []
    for path in sorted(Path(jaxlimit.__file__).parent.rglob("*.py")):
        text = path.read_text()
        for match in CITED.finditer(text):
            authors = re.sub(r"[\s#]+", " ", match[1])
            work = f"{authors} ({match[2]})"
            cited.add(work)
            titled = text[match.end() :].lstrip(", \n").startswith('"')
            wrong += [f"{path.name}: {work}"] if titled or work not in listed else []
    assert not wrong, "cite authors (year), place; the title stands in docs/references.md"
    assert cited == set(listed)


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda p: p.stem)
def test_tutorials_compile_and_call_what_is_there(page):
    cells = re.findall(r"```\{code-cell\} python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(cells) >= 3
    code = "\n".join(cells)
    compile(code, page.name, "exec")
    for module, names in re.findall(r"^from (jaxlimit[\w.]*) import (.+)$", code, re.MULTILINE):
        loaded = importlib.import_module(module)
        for name in names.split(","):
            assert hasattr(loaded, name.strip()), name
