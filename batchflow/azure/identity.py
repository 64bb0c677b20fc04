"""Entra ID in place of keys: the credentials of azure-identity, for tokens over HTTPS only.

One credential serves all services of a program: it keeps a token for each and renews it in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from batchflow.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

Credential: TypeAlias = "AsyncTokenCredential"
"""A source of tokens from Entra ID. Its creator closes it."""


def logged_in(setting: str) -> Credential:
    """Return the credential of the login on this machine.

    It is looked for in the environment, as a managed identity, and in the az CLI, in this order. Makes no
    request. Raises `ConfigurationError` when azure-identity is not installed.
    """
    try:
        from azure.identity.aio import DefaultAzureCredential
    except ImportError as error:
        raise ConfigurationError(f"{setting} needs azure-identity: pip install azure-identity") from error
    return DefaultAzureCredential()


def of_the_node(client_id: str) -> Credential:
    """Return the credential of the pool's user-assigned managed identity, on a node. Makes no request.

    It is not the login on the node, because a task's environment must not change the agent's identity.
    """
    try:
        from azure.identity.aio import ManagedIdentityCredential
    except ImportError as error:
        raise ConfigurationError(
            "the pool's managed identity needs azure-identity on its nodes, beside batchflow in the "
            "interpreter that agent.python names: pip install azure-identity"
        ) from error
    return ManagedIdentityCredential(client_id=client_id)


def check_https(url: str, setting: str) -> None:
    """Refuse an address without HTTPS, which would expose a token. Raises `ConfigurationError`."""
    if not url.lower().startswith("https://"):
        raise ConfigurationError(
            f"{setting} needs https, and the address is {url!r}: use the account's key there"
        )
