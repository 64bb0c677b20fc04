"""Embeds the pool's default bundle in the agents' configuration, where the bundle is small.

An agent's first task needs the bundle. The bundle is in Blob Storage, whose SDK takes longer to import than
the rest of an agent to start. So a small bundle travels in the agents' configuration, which Batch brings to
the node anyway. Its list and its contents are stored under their hashes, by which the agent checks them.

Gain: the first task's fetch from Blob Storage, 0.2 s of a program's start to its first result.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.files import read
from batchflow.protocol.bundle import Bundle, bundle_blob
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.files import BundleSource
    from batchflow.ports.storage import Container
    from batchflow.protocol.bundle import BundleFile

MOST_FILES: Final = 32
MOST_BYTES: Final = 256 * 1024
"""Bytes of all contents together."""


async def pack(
    control: Container, bundle_hash: str | None, into: dict[str, str], sources: Sequence[BundleSource] = ()
) -> None:
    """Put the bundle's list and contents into `into`, each under its SHA-256, in base64.

    Files among the `sources` are not fetched. A large bundle is left out, and so is one of which a part is
    gone: the task that needs it will say so.
    """
    if bundle_hash is None:
        return
    here = {source.file.sha256: source for source in sources}
    contents: dict[str, bytes] = {}

    async def get(file: BundleFile) -> None:
        content = await read(here[file.sha256]) if file.sha256 in here else None
        contents[file.sha256] = (await control.get(file.blob)).data if content is None else content

    try:
        bundle = Bundle.of(source.file for source in sources)
        document = bundle.document
        if bundle.hash != bundle_hash:
            document = (await control.get(bundle_blob(bundle_hash))).data
            bundle = Bundle.read(document, bundle_hash)
        if len(bundle.files) > MOST_FILES or sum(file.size for file in bundle.files) > MOST_BYTES:
            return
        async with task_group() as group:
            for file in {file.sha256: file for file in bundle.files}.values():
                group.start_soon(get, file)
    except (BlobNotFound, ProtocolError):
        return
    contents[bundle_hash] = document
    into |= {name: b64encode(content).decode() for name, content in sorted(contents.items())}
