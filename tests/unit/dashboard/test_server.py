"""The page's own server: its address, its token, and who reaches it."""

from __future__ import annotations

import asyncio

import pytest

from batchflow.client import Client
from batchflow.dashboard.server import TOKEN_VARIABLE, is_loopback, parse_listen, token_of
from batchflow.errors import ConfigurationError, SessionClosed
from batchflow.pool import Pool


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0", "0.0.0.0", 0),
        ("0.0.0.0:8787", "0.0.0.0", 8787),
        ("box.example:80", "box.example", 80),
        ("[::1]:9", "::1", 9),
        ("::1", "::1", 0),
        ("[::]", "::", 0),
    ],
)
def test_an_address_to_listen_on_is_a_host_with_or_without_a_port(text: str, host: str, port: int) -> None:
    """Also of IPv6."""
    assert parse_listen(text) == (host, port)


@pytest.mark.parametrize("text", ["", ":80", "host:", "host:http", "host:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """By its text, with an example."""
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0:8787"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False)],
)
def test_a_host_is_on_this_machine_or_not(host: str, here: bool) -> None:
    """Else the command says who can look."""
    assert is_loopback(host) is here


def test_a_token_is_new_unless_the_environment_has_one() -> None:
    """One that is short, or does not fit into an address, is refused without being shown."""
    assert token_of({}) != token_of({})
    assert token_of({TOKEN_VARIABLE: "a" * 16}) == "a" * 16
    for bad in ("short", "with/a/slash/in/it", "a" * 129):
        with pytest.raises(ConfigurationError) as caught:
            token_of({TOKEN_VARIABLE: bad})
        assert bad not in str(caught.value)


async def test_a_client_serves_the_page_until_it_closes(client: Client, pool: Pool) -> None:
    """The same options give the same address, which a notebook shows as the page."""
    address = await client.dashboard(pool=pool.id)
    assert address.startswith("http://127.0.0.1:")
    assert await client.dashboard(pool=pool.id) == address
    assert await client.dashboard(pool=pool.id, control=True) != address
    assert f'<iframe src="{address}"' in address._repr_html_()  # type: ignore[attr-defined]
    await client.aclose()
    with pytest.raises(SessionClosed):
        await client.dashboard(pool=pool.id)


async def test_two_calls_at_once_serve_one_page(client: Client, pool: Pool) -> None:
    """Else one of two servers would never be closed."""
    one, other = await asyncio.gather(client.dashboard(pool=pool.id), client.dashboard(pool=pool.id))
    assert one == other


async def test_a_port_that_is_taken_is_said(client: Client) -> None:
    """With host and port."""
    port = int((await client.dashboard()).split(":")[2].split("/")[0])
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"):
        await client.dashboard(port=port, token="another-token-of-24-chars")
