"""Stores a session's checkpoint in its mailbox, and in a journal on this host if the user asks for one."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import BrokerError, ConfigurationError, JournalError, MailboxInUse, ProtocolError
from batchflow.protocol.wire import split_uid
from batchflow.sessions.records.checkpoint import UNKNOWN, Checkpoint, DeliveryRecord
from batchflow.support.backoff import Backoff
from batchflow.support.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.ports.broker import Mailbox
    from batchflow.sessions.records.context import SessionContext


SAVE_INTERVAL: Final = 1.0
"""Seconds between two saves while there is something to save. All sessions of a client save together, so the
time between two may be half as long again."""


class Journal:
    """The uids of the outcomes that were delivered on this host: an append-only file, synced each time.

    Writes are a line each and block, because a journal promises that the disk has the line. The line's end is
    written after the rest was synced. So a line without an end belongs to an outcome that was not delivered
    when the process died, and is removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._known: dict[str, Ranges] = {}
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise ConfigurationError(f"journal {str(path)!r} cannot be used: {error}") from error
        try:
            self._read()
        except (OSError, UnicodeDecodeError, ProtocolError) as error:
            self._file.close()
            raise ConfigurationError(f"journal {str(path)!r} cannot be used: {error}") from error

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for line in whole.decode("ascii").splitlines():
            self._add(line)

    def _add(self, uid: str) -> bool:
        incarnation, sequence = split_uid(uid)
        return self._known.setdefault(incarnation, Ranges()).add(sequence)

    def __contains__(self, uid: str) -> bool:
        incarnation, sequence = split_uid(uid)
        return incarnation in self._known and sequence in self._known[incarnation]

    def record(self, uid: str) -> None:
        """Return when the disk has the uid. Raises `JournalError`; then the file is as it was."""
        if uid in self or self._file.closed:
            return
        try:
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._write(uid.encode("ascii"))
                os.fsync(self._file.fileno())
                self._write(b"\n")
            except OSError:
                self._file.truncate(end)
                raise
        except OSError as error:
            raise JournalError(
                f"journal {self._file.name!r} cannot be written: {error}. The result is not delivered: free "
                "space, and make the call again"
            ) from error
        self._add(uid)

    def _write(self, data: bytes) -> None:
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


class CheckpointStore:
    """Reads and saves the checkpoint of a session that can be found again by its name."""

    def __init__(self, context: SessionContext, journal: str | os.PathLike[str] | None) -> None:
        """`journal`: the path of a file on this host. Raises `ConfigurationError` when it cannot be used."""
        self._context = context
        self._journal = None if journal is None else Journal(journal)
        self.record = DeliveryRecord(context.incarnation, self._journal)
        self._loaded = asyncio.Event()
        self._saving = anyio.Lock()
        """One save at a time: a second one waits, because the first may fail and say so too late."""

    @property
    def loaded(self) -> bool:
        """Whether it is known what earlier holders are owed."""
        return self.record.loaded

    async def until_loaded(self) -> None:
        """Return when it is known what earlier holders are owed. Safe to cancel."""
        await self._loaded.wait()

    async def load(self, mailbox: Mailbox, lost_by: Callable[[str], float]) -> None:
        """Take the mailbox over from its earlier holders.

        `lost_by`: when that holder had certainly lost the mailbox, by the broker's clock. Raises
        `BrokerError`: `MailboxInUse` when a later holder had it before this one came to it.
        """
        notices, record = self._context.notices, self.record
        try:
            checkpoint = Checkpoint.decode(await mailbox.get_state())
        except ProtocolError as error:
            notices.warn(f"what earlier holders of this mailbox have read is not known: {error}")
            checkpoint = Checkpoint(holder=UNKNOWN)
        if record.was_replaced(checkpoint):
            raise self._taken_over()
        owed = record.enter(
            checkpoint, lost_by=0.0 if checkpoint.holder is None else lost_by(checkpoint.holder)
        )
        await mailbox.set_state(checkpoint.encode())
        record.load(checkpoint)
        self._loaded.set()
        self._context.tracker.expect(owed)
        if owed:
            notices.inform(f"{owed} outcomes are owed to earlier holders of this mailbox")

    async def check(self, mailbox: Mailbox) -> None:
        """Check a mailbox that was opened again. Raises `MailboxInUse` if another holder had it meanwhile."""
        try:
            found = Checkpoint.decode(await mailbox.get_state())
        except ProtocolError:
            return
        if self.record.was_replaced(found):
            raise self._taken_over()

    def _taken_over(self) -> MailboxInUse:
        return MailboxInUse(f"taken over: another client has opened {self._context.name!r} meanwhile")

    async def until_saved(self, mailbox: Callable[[], Mailbox], passed: Callable[[], int]) -> None:
        """Save what is not saved, again while that fails. Safe to cancel. `mailbox` and `passed`: see `save`.

        Raises `BrokerError` when it fails for `session.patience` seconds, `SessionClosed` when the session
        ends before. An error that does not pass ends the session: see `ResultReceiver`.
        """
        if self.is_saved(passed()):
            return
        backoff, patience = Backoff(longest=SAVE_INTERVAL), self._context.settings.patience
        until = time.monotonic() + patience
        while True:
            self._context.lifetime.check_not_ended()
            try:
                await self.save(mailbox, passed)
            except BrokerError as error:
                if time.monotonic() > until:
                    raise BrokerError(
                        f"the broker has the tasks, but the session's checkpoint was not saved in "
                        f"{patience:.0f} s: a later session of this name may not wait for them: {error}",
                        retryable=True,
                    ) from error
            else:
                return
            if self.loaded:
                await backoff.wait()
            else:
                with anyio.move_on_after(SAVE_INTERVAL):
                    await self.until_loaded()

    def is_saved(self, submitted: int) -> bool:
        """Return whether there is nothing to save. `submitted`: tasks that the broker took or refused."""
        return not (self._saving.locked() or self.record.is_behind(submitted))

    async def save(
        self, mailbox: Callable[[], Mailbox], passed: Callable[[], int], *, last: bool = False
    ) -> None:
        """Return when all that was consumed until now is saved. Raises `BrokerError`.

        `mailbox`: the one that is held, or raises `BrokerError`. `passed`: how many tasks the broker has
        accepted or refused. `last`: nothing is delivered after this.
        """
        async with self._saving:
            held = mailbox()
            if not self.loaded:
                raise BrokerError(
                    f"the state of mailbox {held.session_id!r} was not read yet", retryable=True
                )
            if not self.record.is_behind(passed(), last=last):
                return
            state = self.record.to_save(passed(), last=last)
            try:
                await held.set_state(state)
            except BaseException:
                self.record.not_saved()
                raise

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
