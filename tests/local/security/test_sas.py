"""Which paths a shared access signature covers."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from batchflow.local.security.sas import Rights, SasGrant, SasRule, check_token, sign

RULE = SasRule("root", Rights.MANAGE, "first key", "second key")


def grant(resource: str) -> SasGrant:
    encoded = quote(resource, safe="")
    signature = quote(sign("first key", encoded, "2000"), safe="")
    token = f"SharedAccessSignature sr={encoded}&sig={signature}&se=2000&skn=root"
    return check_token(token, lambda _: [RULE], now=1000.0)


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        ("sb://127.0.0.1:5671/Queue", "queue"),
        ("https://127.0.0.1:5671/", ""),
        ("https://127.0.0.1:5671/queue?api-version=2021-05", "queue"),
        ("https://127.0.0.1:5671/$resources/queues?$skip=0&$top=100", "$resources/queues"),
    ],
)
def test_a_token_covers_the_path_of_its_resource(resource: str, path: str) -> None:
    """Scheme, host and query say nothing about the entity: some SDKs sign the whole address."""
    assert grant(resource).path == path
