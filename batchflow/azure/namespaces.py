"""Reads connection strings of Service Bus, and the certificates to trust their endpoints by."""

from __future__ import annotations

import re

from batchflow.errors import ConfigurationError


def each_of(setting: str) -> list[str]:
    """Split a setting that may hold several connection strings or names, with blanks between them."""
    if "=" not in setting:
        return setting.split() or [setting]
    return re.split(r"\s+(?=endpoint=)", setting.strip(), flags=re.IGNORECASE)


def namespace_of(connection_string: str) -> str:
    """Return the host of a connection string, with its port if it has one: a `QueueRef`'s namespace.

    Raises `ConfigurationError`, which does not quote the string.
    """
    endpoint = fields_of(connection_string).get("endpoint", "")
    host = endpoint.partition("://")[2].strip("/ ")
    if not host:
        raise ConfigurationError(
            "the Service Bus connection string has no Endpoint=sb://HOST/ part: copy it whole, from the "
            "namespace's page 'Shared access policies' in the Azure portal"
        )
    return host


def fields_of(connection_string: str) -> dict[str, str]:
    """Return the parts of a connection string, by their names in lower case."""
    parts = (part.partition("=") for part in connection_string.split(";"))
    return {name.strip().lower(): value for name, _, value in parts if value}


def malformed(setting: str) -> str:
    """Return the error for a connection string that the SDK does not accept."""
    return (
        f"{setting} is no connection string of Service Bus: it needs Endpoint=, SharedAccessKeyName= and "
        "SharedAccessKey=; copy it whole, from the page 'Shared access policies' in the Azure portal"
    )


def host_of(namespace: str) -> str:
    """Return a namespace without its port."""
    return namespace.partition(":")[0]


def endpoint_of(namespace: str) -> str | None:
    """Return the address of a namespace that does not listen at the usual port; None for one that does."""
    return f"sb://{namespace}" if ":" in namespace else None


def is_encrypted(connection_string: str) -> bool:
    """Tell whether the SDK uses TLS with a connection string: always, except for the emulator."""
    return "usedevelopmentemulator" not in fields_of(connection_string)
