"""Entra ID in place of keys: the credentials of azure-identity, for tokens over HTTPS only.

One credential serves all services of a program: it keeps a token for each and renews it in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from batchflow.errors import ConfigurationError

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

Credential: TypeAlias = "AsyncTokenCredential"
"""What gets tokens from Entra ID; whoever made it closes it."""


def logged_in(setting: str) -> Credential:
    """Whoever is logged in here: in the environment, as a managed identity, by the az CLI, in this order.

    Makes no request. Raises `ConfigurationError` when the extra `identity` is not installed.
    """
    try:
        from azure.identity.aio import DefaultAzureCredential
    except ImportError as error:
        raise ConfigurationError(
            f"{setting} needs azure-identity: pip install 'batchflow-azure[identity]'"
        ) from error
    return DefaultAzureCredential()


def of_the_node(client_id: str) -> Credential:
    """The pool's user-assigned managed identity, on a node of it; makes no request.

    Not whoever is logged in there: what the environment of a task says must not change who the agent is.
    """
    try:
        from azure.identity.aio import ManagedIdentityCredential
    except ImportError as error:
        raise ConfigurationError(
            "the pool's managed identity needs azure-identity on its nodes, beside batchflow in the "
            "interpreter that agent.python names: pip install 'batchflow-azure[identity]'"
        ) from error
    return ManagedIdentityCredential(client_id=client_id)


def check_https(url: str, setting: str) -> None:
    """Raises `ConfigurationError` for an address without HTTPS, where a token would be told to anybody."""
    if not url.lower().startswith("https://"):
        raise ConfigurationError(
            f"{setting} needs https, and the address is {url!r}: use the account's key there"
        )
