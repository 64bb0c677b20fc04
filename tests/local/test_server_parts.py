"""What the local cloud stands on: its certificate, and its directory."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from batchflow.local.directory import locked, make_directory, remove_abandoned, remove_tree
from batchflow.local.security.certificate import make_server_context


class TestCertificate:
    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    async def test_certificate_is_valid_for_loopback(self, tmp_path: Path, name: str) -> None:
        """A client that trusts the file talks to the server under both of its names, checked strictly."""
        context = make_server_context(tmp_path / "ca.pem")
        client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        greetings = await talk(context, client, name)
        assert greetings == b"hello"

    async def test_certificate_is_refused_without_its_authority(self, tmp_path: Path) -> None:
        """A client that trusts another cloud's file, or only the system's, does not connect."""
        context = make_server_context(tmp_path / "ca.pem")
        make_server_context(tmp_path / "other.pem")
        for client in (
            ssl.create_default_context(),
            ssl.create_default_context(cafile=tmp_path / "other.pem"),
        ):
            with pytest.raises(ssl.SSLCertVerificationError):
                await talk(context, client, "127.0.0.1")

    def test_certificate_made_in_another_process_keeps_this_one_small(self, tmp_path: Path) -> None:
        """By a fork that ends with it; what makes it is not loaded here. Whoever trusts the file connects."""
        program = f"""
import asyncio, sys
from pathlib import Path
from batchflow.local.security.certificate import MakerAside
certificate = MakerAside()
from batchflow.local.server import LocalCloud
async def serve():
    cloud = LocalCloud(directory=Path({str(tmp_path)!r}) / "cloud", certificate=certificate)
    await cloud.start()
    await cloud.aclose()
asyncio.run(serve())
import os
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("cryptography" in sys.modules)
"""
        (tmp_path / "cloud").mkdir(mode=0o700)
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert told.stdout == "False\n"

    def test_failed_certificate_raises_the_reason(self, tmp_path: Path) -> None:
        """And why, on standard error; nothing is left on the disk."""
        program = f"""
import sys
from pathlib import Path
sys.modules["cryptography"] = None
from batchflow.errors import ServiceError
from batchflow.local.security.certificate import MakerAside, make_server_context
try:
    make_server_context(Path({str(tmp_path)!r}) / "ca.pem", MakerAside())
except ServiceError as error:
    print(error)
"""
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "certificate" in told.stdout
        assert "ModuleNotFoundError" in told.stderr or "ImportError" in told.stderr
        assert not any(tmp_path.iterdir())

    def test_private_key_is_not_left_on_disk(self, tmp_path: Path) -> None:
        """Only the public part is left on the disk."""
        make_server_context(tmp_path / "ca.pem")
        assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]
        assert b"PRIVATE" not in (tmp_path / "ca.pem").read_bytes()


async def talk(server_context: ssl.SSLContext, client_context: ssl.SSLContext, name: str) -> bytes:
    """Connect over TLS and return what the server says."""

    def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client_context, server_hostname=name
        )
        said = await reader.read()
        writer.close()
        await writer.wait_closed()
        return said


class TestDirectory:
    @pytest.fixture(autouse=True)
    def _own_temporary_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def test_directory_is_private(self) -> None:
        """Nobody else may look into it."""
        assert stat.S_IMODE(make_directory().stat().st_mode) == 0o700

    def test_write_protected_files_are_removed(self) -> None:
        """A task's read-only folders do not stay."""
        directory = make_directory()
        (directory / "a" / "b").mkdir(parents=True)
        (directory / "a" / "b" / "file").touch()
        (directory / "a" / "b").chmod(0o500)
        (directory / "a").chmod(0)
        assert remove_tree(directory)
        assert not directory.exists()
        assert remove_tree(directory)

    def test_directory_of_a_dead_cloud_is_removed(self) -> None:
        """A killed process's directory goes; a living one's, and one that is no cloud's, stay."""
        dead, alive, other = make_directory(), make_directory(), make_directory()
        code = (
            "import sys, time, pathlib; from batchflow.local.directory import locked\n"
            "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"
        )
        command = [sys.executable, "-c", code, str(dead)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process, locked(alive):
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            remove_abandoned()
            assert dead.exists()
            process.kill()
            process.wait()
            remove_abandoned()
            assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)

    def test_symbolic_link_is_not_followed(self, tmp_path: Path) -> None:
        """A lock that is a link to elsewhere makes nothing an abandoned cloud."""
        (tmp_path / "elsewhere").touch()
        directory = make_directory()
        os.symlink(tmp_path / "elsewhere", directory / "lock")
        remove_abandoned()
        assert directory.exists()
