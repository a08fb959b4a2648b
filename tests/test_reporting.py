"""Tables and the blocks of a file that hold them."""

import pytest

pytest.importorskip("rich")

from jaxlimit.reporting import markdown_table, replace_block, time_in_turns


def test_table_shows_each_column_by_each_row():
    columns = {"a": {"size": 2}, "b": {"size": 3}}
    rows = {"size": lambda c: str(c["size"]), "square": lambda c: str(c["size"] ** 2)}
    assert markdown_table(columns, rows).splitlines() == [
        "| | a | b |",
        "| --- | --- | --- |",
        "| size | 2 | 3 |",
        "| square | 4 | 9 |",
    ]


def test_block_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before <!-- x:begin -->\nold\n<!-- x:end --> after <!-- y:begin -->")
    for _ in range(2):
        replace_block(path, "x", r"new \1")
        expected = "before <!-- x:begin -->\n\nnew \\1\n\n<!-- x:end --> after <!-- y:begin -->"
        assert path.read_text() == expected


@pytest.mark.parametrize("text", ["", "<!-- x:begin -->", "<!-- x:end --><!-- x:begin -->"])
def test_missing_marker_is_named(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="must hold <!-- x:begin --> and then <!-- x:end -->"):
        replace_block(path, "x", "new")
    assert path.read_text() == text


def test_calls_take_turns():
    order = []
    seconds = time_in_turns({n: lambda n=n: order.append(n) for n in "ab"}, repeats=2)
    assert order == list("ababab")
    assert {len(taken["all"]) for taken in seconds.values()} == {2}
    order.clear()
    seconds = time_in_turns(
        {n: lambda n=n: order.append(n) for n in "ab"}, repeats=1, warm_up=False
    )
    assert order == list("ab")
    assert "first" not in seconds["a"]
