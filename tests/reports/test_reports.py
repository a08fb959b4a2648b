"""Reports of a study: whole, self-contained, by their schema, and two side by side."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import jaxlimit
from jaxlimit import formats, plotting, reports
from jaxlimit._core import files
from jaxlimit.reports import figures
from jaxlimit.reports._markdown import code, escape


@pytest.fixture(scope="module")
def saved(adam_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert adam_study.save(folder) == folder / "report.html"
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, and whether its tags are closed."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else(saved, adam_study):
    text = (saved / "report.html").read_text()
    assert len(text.encode()) < 1e6
    page = Page()
    page.feed(text)
    assert not page.open
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    words = " ".join(" ".join(page.text).split())
    assert (
        f"Do not prune at ρ* = {100 * float(adam_study.estimate.prediction.ratio):.3g} %" in words
    )
    assert f"{100 * adam_study.ratio:.3g} %" in words


def test_the_result_is_by_its_schema(saved):
    jsonschema = pytest.importorskip("jsonschema")
    result = json.loads((saved / "result.json").read_text())
    jsonschema.validate(result, reports.read_schema())
    result["found"]["ratio"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(result, reports.read_schema())


def test_the_result_is_what_was_found(saved, adam_study):
    result = reports.read(saved)
    assert result["found"]["num_kept"] == adam_study.found.num_kept
    assert result["measured"]["by_loss"] == pytest.approx(adam_study.measured.by_loss, rel=1e-8)
    published = result["prediction"]["published"]
    assert published["lower"] <= published["ratio"] <= published["upper"]
    assert result["about"]["num_examples"] == 1297
    assert result["about"]["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", result["about"]["date"])
    changed = json.loads((saved / "result.json").read_text())
    changed["found"]["num_kept"] += 1
    other = saved.parent / "changed.json"
    other.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed since"):
        reports.read(other)
    with pytest.raises(FileNotFoundError, match="must be the folder of a saved study"):
        reports.read(saved / "figures")


def test_masks_and_spectrum_are_read_by_others(saved, adam_study):
    mask = formats.load(saved / "mask_found.safetensors", like=adam_study.task.params).params
    for one, other in zip(*map(jax.tree.leaves, (mask, adam_study.mask)), strict=True):
        np.testing.assert_array_equal(one, other)
    spectrum = load_file(saved / "spectrum.safetensors")
    measure = adam_study.estimate.measure
    np.testing.assert_array_equal(spectrum["nodes"], measure.nodes)
    np.testing.assert_array_equal(spectrum["weights"], measure.weights)
    with safe_open(saved / "spectrum.safetensors", framework="np") as file:
        assert file.metadata()["dim"] == str(adam_study.measured.dim)


def test_the_markdown_refers_to_its_figures(saved):
    text = (saved / "report.md").read_text()
    names = re.findall(r"\]\((figures/\w+\.png)\)", text)
    assert len(names) >= 3
    for name in names:
        assert (saved / name).read_bytes().startswith(b"\x89PNG")
        assert (saved / name).with_suffix(".svg").exists()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


def test_a_notebook_shows_table_and_figure(adam_study):
    page = Page()
    page.feed(adam_study._repr_html_())
    assert not page.open
    assert len(page.links) == 1
    assert "magnitude, measured" in "".join(page.text)


def test_names_are_escaped(adam_study, tmp_path):
    about = adam_study.about | {"command": "jaxlimit study '<script>alert(1)</script>'"}
    page = reports.html(dataclasses.replace(adam_study, about=about), [])
    assert "<script>" not in page
    assert "matplotlib" in page  # the hint where there are no figures


NAMES = ("conv|1", "<img src=x>", "*bold*", "a`b``c", "two\nlines", "__init__", "&lt;", "[x](y)",
         "ends in \\", "$x$ ~~no~~", "# head", "1. item", "- item", "$\\nocommand$")  # fmt: skip


def inlines(text):
    """The inline content of Markdown, as a parser of its own reads it: (is it plain, its words)."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark")
    for token in parser.enable(["table", "strikethrough"]).parse(text):
        if token.type == "inline":
            kinds = {child.type for child in token.children}
            yield kinds <= {"text"}, "".join(child.content for child in token.children)


@given(st.text(st.sampled_from("ab1_*`|<>/&;#[]()\\!~$-+. \n") | st.characters(codec="utf-8")))
@settings(max_examples=150, deadline=None)
def test_any_text_is_shown_as_it_is(words):
    words = re.sub(r"[\x00-\x1f\x7f\x85]", " ", words)
    wanted = " ".join(words.split())
    for text in (f"- {escape(words)}", f"- a: {escape(words)}",
                 f"| a |\n| --- |\n| {escape(words)} |"):  # fmt: skip
        *_, (plain, shown) = [(True, ""), *inlines(text)]
        assert plain
        assert " ".join(shown.removeprefix("a:").split()) == wanted or wanted in ("", "-")
    if wanted:
        ((_, shown),) = inlines(f"- x {code(words)}")
        assert " ".join(shown.removeprefix("x").split()) == wanted


def test_names_stand_in_the_reports_as_they_are(adam_study):
    count = len(adam_study.layers.names)
    for i in range(0, len(NAMES), count):
        names = (*NAMES, *NAMES)[i : i + count]
        layers = adam_study.layers._replace(names=np.array(names))
        evil = dataclasses.replace(adam_study, layers=layers, missing=list(names))
        drawn = figures.pictures(evil)
        labels = [text.get_text() for text in drawn[-1].figure.axes[0].get_yticklabels()]
        assert labels == list(names)
        page = Page()
        page.feed(reports.html(evil, drawn))
        cells = [" ".join(words.split()) for words in page.text]
        found = list(inlines(reports.markdown(evil, drawn)))
        first, *marked = [words for plain, words in found if not plain]
        assert first.endswith("weights kept.")  # in italics
        assert marked == [
            *(picture.title for picture in drawn),  # images
            evil.about["command"],  # code
        ]
        for name in names:
            one_line = name.replace("\n", " ")
            assert one_line in cells
            assert (True, one_line) in found
            assert (True, f"missing: {one_line}") in found
        for picture in drawn:
            plotting.png(picture.figure)


def test_a_full_disk_leaves_what_was_there(saved, adam_study, monkeypatch):
    names = ("report.html", "report.md", "result.json")
    before = [(saved / name).read_bytes() for name in names]

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        adam_study.save(saved)
    monkeypatch.undo()
    assert [(saved / name).read_bytes() for name in names] == before
    assert not list(saved.glob(".*.tmp"))


def test_compare(saved, adam_study):
    other = dataclasses.replace(
        adam_study,
        settings=dataclasses.replace(adam_study.settings, num_steps=32),
        found=None,
    )
    found = jaxlimit.compare(saved, other)
    assert found.settings["settings.num_steps"] == (64, 32)
    assert "settings.num_gap_steps" not in found.settings
    assert found.limits["smallest mask found"] == (f"{100 * adam_study.ratio:.3g} %", "-")
    assert "[" in found.limits["predicted ρ*, published"][0]
    rows = str(found).splitlines()
    assert {row.count("|") for row in rows} == {4}
    figure = found.plot()
    assert len(figure.axes) == 2
    with pytest.raises(FileNotFoundError, match="must be the folder of a saved study"):
        jaxlimit.compare(saved, Path("nowhere"))


def test_a_mask_of_another_network_is_refused(saved):
    with pytest.raises(formats.CheckpointError, match="lacks"):
        reports.read_mask(saved, "found", {"w": np.ones(3)})
    with pytest.raises(FileNotFoundError, match="it has found"):
        reports.read_mask(saved, "none", {"w": np.ones(3)})
