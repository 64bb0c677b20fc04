"""Entra ID in place of keys: the credential of azure-identity, for tokens over HTTPS only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential


def token_credential(url: str, setting: str) -> AsyncTokenCredential:
    """Whoever is logged in here: in the environment, as a managed identity, by the az CLI, in this order.

    Makes no request. Raises `ConfigurationError` for an address that is not HTTPS, where a token would be
    told to anybody, and when the extra `identity` is not installed.
    """
    if not url.lower().startswith("https://"):
        raise ConfigurationError(
            f"{setting} needs https, and the address is {url!r}: use the account's key there"
        )
    try:
        from azure.identity.aio import DefaultAzureCredential
    except ImportError as error:
        raise ConfigurationError(
            f"{setting} needs azure-identity: pip install 'batchflow-azure[identity]'"
        ) from error
    return DefaultAzureCredential()
