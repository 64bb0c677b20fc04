"""The local cloud's own certificate: made at each start, good for loopback alone, and for a year.

The Service Bus administration client speaks https whatever it is told, so that service needs TLS. The
certificate is self-signed and its own authority: who trusts the PEM file trusts this one server.

What makes it (`selfsigned`) is loaded for it alone and holds 11 MB ever after, so a cloud
that has a process of its own leaves it to another one, which ends when it is made.
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
    """In this process."""
    from batchflow.local.security import selfsigned

    return selfsigned.make()


class MakerAside:
    """Begins at once, in a fork: for a process that has no thread and no event loop yet."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _tell(writer)
        os.close(writer)

    def __call__(self) -> tuple[bytes, bytes]:
        """Waits for what the fork has made. Once."""
        with os.fdopen(self._reader, "rb") as pipe:
            parts = pipe.read().split(b"\0")
        os.waitpid(self._pid, 0)
        if len(parts) != _PARTS:
            raise ServiceError("the local cloud's certificate could not be made")
        key, certificate = parts
        return key, certificate


def _tell(writer: int) -> NoReturn:
    """The fork's life: what goes wrong is said on standard error, and the pipe ends without a word."""
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(b"\0".join(make()))
    except BrokenPipeError:
        pass  # who wanted it is gone
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
