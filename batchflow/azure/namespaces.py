"""What a connection string of Service Bus says, and the certificates to trust its endpoint by."""

from __future__ import annotations

import re

from batchflow.errors import ConfigurationError


def each_of(setting: str) -> list[str]:
    """The connection strings, or the names, of a setting that may hold several, with blanks between them."""
    if "=" not in setting:
        return setting.split() or [setting]
    return re.split(r"\s+(?=endpoint=)", setting.strip(), flags=re.IGNORECASE)


def namespace_of(connection_string: str) -> str:
    """The host of a connection string, with the port where it has one: a `QueueRef`'s namespace.

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
    """Its parts, by their names in lower case."""
    parts = (part.partition("=") for part in connection_string.split(";"))
    return {name.strip().lower(): value for name, _, value in parts if value}


def malformed(setting: str) -> str:
    """What to say of a connection string that the SDK does not take."""
    return (
        f"{setting} is no connection string of Service Bus: it needs Endpoint=, SharedAccessKeyName= and "
        "SharedAccessKey=; copy it whole, from the page 'Shared access policies' in the Azure portal"
    )


def host_of(namespace: str) -> str:
    """A namespace without its port."""
    return namespace.partition(":")[0]


def endpoint_of(namespace: str) -> str | None:
    """Where to connect to, for a namespace that does not listen at the usual port; None for one that does."""
    return f"sb://{namespace}" if ":" in namespace else None


def is_encrypted(connection_string: str) -> bool:
    """Whether the SDK speaks TLS by it: always, but to what calls itself the emulator."""
    return "usedevelopmentemulator" not in fields_of(connection_string)
