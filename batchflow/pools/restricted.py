"""One pool's queues and containers, as a client without keys of an account sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.errors import ConfigurationError, StorageError
from batchflow.ports.broker import QueueRef
from batchflow.ports.storage import AccessPolicy
from batchflow.protocol import layout
from batchflow.settings import AccessSettings
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from batchflow.ports.storage import Container


def queues_of(access: AccessSettings) -> dict[QueueRef, str]:
    """Read the connection string of each queue. Raises `ConfigurationError`, which quotes none of them."""
    found = {}
    for name in ("task_queues", "results_queues"):
        for key in (getattr(access, name) or "").split():
            fields = {part.partition("=")[0].lower(): part.partition("=")[2] for part in key.split(";")}
            host = fields.get("endpoint", "").partition("://")[2].strip("/")
            if not host or not fields.get("entitypath"):
                raise ConfigurationError(
                    f"access.{name}: connection strings with Endpoint=sb://HOST/ and EntityPath=QUEUE, with "
                    "blanks between them, as pool.client_settings() gives them"
                )
            found[QueueRef(host, fields["entitypath"])] = key
    return found


class PoolStorage(Closes):
    """The two containers of one pool, as a Storage account that holds nothing else."""

    def __init__(self, pool_id: str, ctl: Container, out: Container) -> None:
        self._pool = pool_id
        self._ctl = ctl
        self._out = out

    def container(self, name: str) -> Container:
        if name == layout.INDEX_CONTAINER:
            return self._ctl  # the copy of the manifest has the manifest's name
        for container in (self._ctl, self._out):
            if container.name == name:
                return container
        raise self._refusal(f"container {name} is out of reach")

    async def create_container(self, name: str, policies: tuple[AccessPolicy, ...] = ()) -> bool:
        raise self._refusal(f"container {name} cannot be made")

    async def delete_container(self, name: str) -> bool:
        raise self._refusal(f"container {name} cannot be deleted")

    async def containers(self, prefix: str = "") -> list[str]:
        return sorted(each.name for each in (self._ctl, self._out) if each.name.startswith(prefix))

    async def signature(self, container: str, policy: AccessPolicy) -> str:
        raise self._refusal(f"nothing can be signed for container {container}")

    async def blob_signature(self, container: str, name: str, valid: float) -> str:
        raise self._refusal(f"nothing can be signed for container {container}")

    def _refusal(self, what: str) -> StorageError:
        return StorageError(f"{what}: the settings access.* open the two containers of pool {self._pool!r}")

    async def aclose(self) -> None:
        await self._ctl.aclose()
        await self._out.aclose()
