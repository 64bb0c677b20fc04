"""Settings of where batchflow connects to: the three services, or one pool of another account."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The Azure Batch account."""

    account: str | None = None
    """Its name."""
    key: str | None = field(default=None, repr=False)
    """One of its two keys: a secret."""
    url: str | None = None
    """`https://<account>.<region>.batch.azure.com`."""
    entra: bool = False
    """Use Entra ID instead of the key, as the user that azure-identity finds. Needs the extra `identity`."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's. None: no others."""


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """The Storage account: by its connection string, or by its URL and Entra ID."""

    connection_string: str | None = field(default=None, repr=False)
    """As the portal shows it under "Access keys": a secret."""
    account_url: str | None = None
    """`https://<account>.blob.core.windows.net`. Set, it takes the place of the connection string: who may
    do what is then decided by Entra ID. Needs the extra `identity`."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's, here and on the nodes. None: no others."""


@dataclass(frozen=True, slots=True)
class ServiceBusSettings:
    """The Service Bus namespace, of the Standard or the Premium tier: by its connection string, or by its
    name and Entra ID. Several of either, with blanks between them: pools are spread over them."""

    connection_string: str | None = field(default=None, repr=False)
    """Of an access policy of the namespace with the rights Manage, Send and Listen: a secret."""
    ca_file: str | None = None
    """Certificates (PEM) to trust besides the system's: a proxy's, the local cloud's own. None: no others."""
    websockets: bool = False
    """AMQP over websockets on port 443, for networks that let nothing else out."""
    namespace: str | None = None
    """`<name>.servicebus.windows.net`. Set, it takes the place of the connection string: who may do what is
    then decided by Entra ID. Needs the extra `identity`."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """One pool, for a client that holds no key of an account: what `pool.client_settings()` gives.

    Set, it takes the place of the three services: such a client opens sessions, and makes and removes
    nothing.
    """

    pool: str | None = None
    """The pool's id."""
    ctl: str | None = field(default=None, repr=False)
    """The URL of its control container, with a signature."""
    out: str | None = field(default=None, repr=False)
    """The URL of its output container, with a signature."""
    task_queues: str | None = field(default=None, repr=False)
    """Connection strings that may send to its task queues, with blanks between them."""
    results_queues: str | None = field(default=None, repr=False)
    """Connection strings that may listen to its results queues, with blanks between them."""
