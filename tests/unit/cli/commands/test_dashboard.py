"""`batchflow dashboard` serves the page until Ctrl-C."""

from __future__ import annotations

import urllib.request
from urllib.error import HTTPError, URLError

import pytest

from tests.support.command_line import Cli, interrupted


def test_the_page_is_served_at_the_printed_address_until_ctrl_c(cli: Cli) -> None:
    """The address alone is on stdout, and holds the token; without it nothing is shown."""
    process = cli.start("dashboard", "--pool", "demo")
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert b"<title>" in answer.read()
    with pytest.raises(HTTPError, match="403"):
        urllib.request.urlopen(address.rsplit("/", 2)[0] + "/", timeout=30)
    rest, said = interrupted(process)
    assert (process.returncode, rest) == (0, "")
    assert said.splitlines()[-1] == "Ctrl-C ends it"
    with pytest.raises(URLError, match="refused"):
        urllib.request.urlopen(address, timeout=30)


def test_a_pool_that_is_not_there_is_said(cli: Cli) -> None:
    """And nothing is served."""
    ended = cli("dashboard", "--pool", "nope")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "nope" in ended.stderr
