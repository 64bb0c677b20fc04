"""Brings the code of functions into a pool, as bundles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from batchflow.errors import BlobNotFound, ConfigurationError
from batchflow.files import BundleSource, source_of, stored, upload
from batchflow.functions.command import FunctionCommand
from batchflow.functions.own_code import OwnCode, OwnFile
from batchflow.protocol.functions import PYTHON, pickle_name
from batchflow.support.frozen import frozen
from batchflow.support.threads import in_thread

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

_LOOK_INTERVAL: Final = 0.05
"""Seconds for which the files of a project, once looked at, count as unchanged."""
_QUICK: Final = 0.001
"""Seconds that a look at the files may take to be made in the event loop: a thread takes longer."""
_UPLOADED_FOR: Final = 86_400.0
"""Seconds after which a function is uploaded again, because a sweep removes what is old."""


class CodePool(Protocol):
    """The pool, as far as code is brought into it."""

    @property
    def pool_id(self) -> str: ...

    @property
    def ctl(self) -> Container: ...


@frozen
class FunctionBundles:
    """Where a task finds the code of its function."""

    files: str
    """The hash of the bundle that it runs with."""
    pickle: str | None
    """The hash of the bundle that has the function by value."""


class CodeStore:
    """The code of the functions that a session's tasks call: what is new, and what has changed since."""

    def __init__(self, pool: CodePool, node_pythons: Callable[[], frozenset[str]]) -> None:
        """`node_pythons`: the minor versions of Python of the nodes, as far as they are known."""
        self._pool = pool
        self._node_pythons = node_pythons
        self._code = OwnCode()
        self._modules = frozenset[str]()
        """Those whose files are looked at."""
        self._bundles: dict[str, str] = {}
        """The bundle with the project's files, by the bundle that tasks without functions run with."""
        self._files: tuple[OwnFile, ...] = ()
        self._sources: dict[str, tuple[OwnFile, BundleSource]] = {}
        """What was hashed, by its name in the bundle."""
        self._looked_at = 0.0
        self._look_took = 1.0
        """Seconds of the last look."""
        self._pickles: dict[bytes, tuple[str, float]] = {}
        """The bundle of each function by value, and when it was uploaded."""
        self._changing = anyio.Lock()

    async def bundles(self, function: FunctionCommand, base: str) -> FunctionBundles:
        """Return what a task that calls the function runs with, once it is in the pool. Safe to cancel.

        `base`: the hash of the bundle of the session's files. Raises `ConfigurationError` for a function by
        value where the nodes have another Python, and for files that cannot be read; `StorageError`.
        """
        pickle = None if function.pickled is None else await self._pickle(function.label, function.pickled)
        files = await self._with_code(function.modules, base) if function.modules else base
        return FunctionBundles(files, pickle)

    async def _pickle(self, label: str, data: bytes) -> str:
        self._check_python(label)
        if (known := self._uploaded(data)) is not None:
            return known
        async with self._changing:
            if (known := self._uploaded(data)) is not None:
                return known  # another task of the same function was first
            made = await upload([source_of(pickle_name(PYTHON), data)], self._pool.ctl)
            self._pickles[data] = (made.hash, time.monotonic())
            return made.hash

    def _uploaded(self, data: bytes) -> str | None:
        known = self._pickles.get(data)
        return known[0] if known is not None and time.monotonic() - known[1] < _UPLOADED_FOR else None

    def _check_python(self, label: str) -> None:
        others = sorted(self._node_pythons() - {PYTHON})
        if others:
            raise ConfigurationError(
                f"the function {label} has no module that a node could import, so it travels as byte code of "
                f"Python {PYTHON}; the nodes have Python {', '.join(others)}: put the function into a "
                f"module, or use a pool whose nodes have Python {PYTHON}: "
                f"PoolSpec(python={PYTHON!r}) makes one"
            )

    async def _with_code(self, modules: frozenset[str], base: str) -> str:
        """Return the bundle of the base's files and the project's, as they are now.

        Where they were looked at just now, this gives the event loop no turn, which would cost more than the
        task, and would send each task of many in a message of its own.
        """
        if (known := self._looked_up(modules, base)) is not None:
            return known
        async with self._changing:
            if (known := self._looked_up(modules, base)) is not None:
                return known
            for module in sorted(modules):
                self._code.add(module)
            self._modules |= modules
            now = time.monotonic()
            files = await in_thread(self._look)
            if files != self._files:
                self._bundles.clear()
                self._files = files
            if base not in self._bundles:
                self._bundles[base] = await self._upload(base)
            self._looked_at = now
            return self._bundles[base]

    def _looked_up(self, modules: frozenset[str], base: str) -> str | None:
        """Return the bundle if the files are as they were; None: they are to be looked at in a thread.

        A look that is quick is made here, because a turn for the event loop would send what is submitted
        together in several messages.
        """
        if not modules <= self._modules:
            return None
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_INTERVAL:
            if self._look_took > _QUICK or self._look() != self._files:
                return None
            self._looked_at = now
        return self._bundles.get(base)

    def _look(self) -> tuple[OwnFile, ...]:
        began = time.monotonic()
        files = tuple(self._code.files())
        self._look_took = time.monotonic() - began
        return files

    async def _upload(self, base: str) -> str:
        ctl = self._pool.ctl
        try:
            listed = await stored(base, ctl)
        except BlobNotFound as error:
            raise ConfigurationError(
                f"the files of the session are not in pool {self._pool.pool_id} any more: {error}; "
                "`await session.update_files(files)` brings them back"
            ) from error
        sources = await in_thread(self._hashed)
        own = {source.file.name for source in sources}
        beside = [file for file in listed.files if file.name not in own]
        return (await upload(sources, ctl, beside=beside)).hash

    def _hashed(self) -> list[BundleSource]:
        """Hash the project's files that have changed."""
        for file in self._files:
            known = self._sources.get(file.name)
            if known is None or known[0] != file:
                self._sources[file.name] = (file, source_of(file.name, file.path))
        return [self._sources[file.name][1] for file in self._files]
