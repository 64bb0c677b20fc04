"""Entra ID in place of the Batch account's key, as far as it can be seen without Azure."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from azure.core.credentials import AccessToken

from batchflow.azure import batch as adaptor
from batchflow.azure.batch import BatchCompute
from batchflow.errors import ConfigurationError, PoolError
from batchflow.settings import BatchSettings, ServiceBusSettings, Settings, StorageSettings

URL = "https://account.region.batch.azure.com"


class Login:
    """A credential that notes for what a token was asked, and gives none that opens anything."""

    def __init__(self) -> None:
        self.scopes: list[str] = []
        self.closed = False

    async def get_token(self, *scopes: str, **_: object) -> AccessToken:
        self.scopes += scopes
        return AccessToken("nothing", 2**31)

    async def close(self) -> None:
        self.closed = True


def test_the_key_is_not_needed() -> None:
    """With Entra ID for Batch nothing is missing but the other two services' keys."""
    settings = Settings(
        batch=BatchSettings(account="a", url=URL, entra=True),
        storage=StorageSettings("s"),
        servicebus=ServiceBusSettings("b"),
    )
    assert settings.connected
    assert not replace(settings, batch=replace(settings.batch, entra=False)).connected


async def test_a_token_is_asked_for_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request asks the credential for a token for Batch; closing closes the credential."""
    login = Login()
    monkeypatch.setattr(adaptor, "token_credential", lambda *_: login)
    compute = BatchCompute("account", None, "https://127.0.0.1:9")
    with pytest.raises(PoolError):
        await compute.pool("any")
    assert login.scopes == ["https://batch.core.windows.net//.default"]
    await compute.aclose()
    assert login.closed


def test_a_token_goes_over_https_only() -> None:
    """Where a token could be read by others it is refused, before anybody is asked to log in."""
    with pytest.raises(ConfigurationError, match=r"batch\.entra needs https.*http://127\.0\.0\.1"):
        BatchCompute("local", None, "http://127.0.0.1:1")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without azure-identity the error says what to install."""
    monkeypatch.setitem(sys.modules, "azure.identity.aio", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'batchflow-azure\[identity\]'"):
        BatchCompute("account", None, URL)


async def test_the_real_credential_is_made_without_a_request() -> None:
    """azure-identity's own credential is made and closed."""
    compute = BatchCompute("account", None, URL)
    await compute.aclose()
