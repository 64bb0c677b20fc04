"""The process of a local cloud that a program starts for itself: `python -m batchflow.local`, up sooner.

The program waits for this process, which spends most of its start with imports. So the certificate is begun
first and created in another process while this one imports. And aiohttp is imported without the system's
certificates, which it reads at its import for requests that name no certificates; that takes as long as the
rest of its import. This process makes no such request: downloads from outside name the certificates that
they trust (`batchflow.local.batch.nodes.resource_files`).

Gain: 40 to 70 ms of the start without the system's certificates.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from batchflow.local.security.certificate import MakerAside
from batchflow.support import linux

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHERE: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Where OpenSSL looks for the system's certificates, if not at its own places."""


def main() -> int:
    """Run a local cloud; return the exit status. Arguments as for `python -m batchflow.local`."""
    linux.heed_children()
    certificate = MakerAside()
    with _without_certificates():
        from batchflow.local.__main__ import main as run
    return run(certificate=certificate)


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Hide the system's certificates from import statements, in a process without threads."""
    before = {name: os.environ.get(name) for name in _WHERE}
    os.environ.update(dict.fromkeys(_WHERE, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
