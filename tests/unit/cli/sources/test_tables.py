"""Tables of text: the separator of their columns, and the results of a run as one."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.cli.sources.tables import Item, ResultTable, rows_of, separator_of
from batchflow.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("name,size\na,1\n", ","),
        ("name;size\na;1\n", ";"),
        ("name\tsize\na\t1\n", "\t"),
        ("name;size\na;1,5\nb;2,5\n", ";"),
        ('name,"a;b"\nx,1\n', ","),
        ('text,size\n"a;b",1\nc,2\n', ","),
        ("name;size\na;1\nb\n", ";"),
        ("name,size;kg\na,1\n", ","),
        ("name\na\nb\n", ","),
        ("one text, and another\nno comma here\n", ","),
        ("", ","),
    ],
)
def test_the_separator_of_the_columns_is_found(text: str, separator: str) -> None:
    """The one by which the rows agree; a comma, where there is one column."""
    assert separator_of("in.csv", text) == separator


@pytest.mark.parametrize("text", ["a,b;c\n1,2;3\n", "a;b\tc\nx\n", "1,5;2,5\n"])
def test_columns_that_two_characters_may_separate_are_refused(text: str) -> None:
    """The error names the option that says which."""
    with pytest.raises(ConfigurationError, match=r"in\.csv: a .* may separate the columns; .*--delimiter"):
        separator_of("in.csv", text)


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=2), min_size=1),
    st.sampled_from(",;\t"),
)
def test_what_a_spreadsheet_writes_is_read_as_it_was(rows: list[list[str]], separator: str) -> None:
    """Quotes, line ends and separators inside cells included; or the separator is asked for."""
    out = io.StringIO()
    csv.writer(out, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(rows)
    assert separator_of("x", out.getvalue()) == separator
    assert [cells for _, cells in rows_of("x", out.getvalue(), separator)] == rows


def test_results_as_a_table() -> None:
    """Inputs that are objects have columns of their own; text stands as it is, the rest as JSON."""
    items = [Item("x.py", [{"name": "a", "node": 1}]), Item("x.py", [{"name": 'say "b"', "more": [1]}])]
    table = ResultTable(items)
    documents: list[dict[str, Any]] = [
        {"index": 1, "command": "x.py", "status": "failed", "error": "two\nlines", "value": None},
        {"index": 0, "command": "x.py", "status": "succeeded", "value": {"x": 1}, "node": "n"},
    ]
    text = "\n".join([table.head, *map(table.row, documents)])
    failed, succeeded = csv.DictReader(io.StringIO(text))
    assert (failed["name"], failed["more"], failed["error"]) == ('say "b"', "[1]", "two\nlines")
    assert (failed["value"], failed["node"]) == ("", "")
    assert (succeeded["input.node"], succeeded["node"], succeeded["value"]) == ("1", "n", '{"x": 1}')


def test_other_inputs_are_one_column() -> None:
    """As JSON."""
    table = ResultTable([Item("x.py", [1, "a"]), Item("x.py", [{}])])
    row = next(csv.DictReader(io.StringIO(f"{table.head}\n{table.row({'index': 0})}")))
    assert json.loads(row["arguments"]) == [1, "a"]
