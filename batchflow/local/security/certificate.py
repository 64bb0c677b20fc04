"""The local cloud's own certificate: made at each start, good for loopback alone, and for a year.

The Service Bus administration client always speaks https, so that service needs TLS. The certificate is
self-signed and its own authority: a client that trusts the PEM file trusts this one server.

`selfsigned` loads cryptography, which holds 11 MB for as long as its process runs. So a cloud with a process
of its own creates the certificate in a fork, which then ends.

Gain: 11 MB of the local cloud's 58. The cloud's start does not wait for the certificate, because the fork
creates it while the cloud imports.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import NoReturn, Protocol

from batchflow.errors import ServiceError

_PARTS = 2


class Maker(Protocol):
    """Makes a key and its certificate, in PEM."""

    def __call__(self) -> tuple[bytes, bytes]: ...


def make() -> tuple[bytes, bytes]:
    """Create a key and its certificate in this process."""
    from batchflow.local.security import selfsigned

    return selfsigned.make()


class MakerAside:
    """Creates a certificate in a fork, at once. For a process that has no thread and no event loop yet."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _tell(writer)
        os.close(writer)

    def __call__(self) -> tuple[bytes, bytes]:
        """Wait for the key and the certificate of the fork. To be called once."""
        with os.fdopen(self._reader, "rb") as pipe:
            parts = pipe.read().split(b"\0")
        os.waitpid(self._pid, 0)
        if len(parts) != _PARTS:
            raise ServiceError("the local cloud's certificate could not be made")
        key, certificate = parts
        return key, certificate


def _tell(writer: int) -> NoReturn:
    """Create the certificate in the fork and exit. An error goes to stderr, and the pipe ends empty."""
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(b"\0".join(make()))
    except BrokenPipeError:
        pass  # the parent is gone
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


def make_server_context(ca_file: Path, maker: Maker = make) -> ssl.SSLContext:
    """Make a certificate, write its public part to `ca_file`, return TLS with it.

    The private key is on disk, readable by the owner alone, only while OpenSSL reads it from there.
    """
    key, certificate = maker()
    ca_file.write_bytes(certificate)
    key_file = ca_file.with_name(f"{ca_file.name}.key")
    try:
        _write_private(key_file, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca_file, key_file)
    finally:
        key_file.unlink(missing_ok=True)
    return context


def _write_private(path: Path, pem: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(pem)
