"""Stores a session's checkpoint in its mailbox, and in a journal on this host if the user asks for one."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from batchflow.errors import ConfigurationError, MailboxInUse, ProtocolError
from batchflow.protocol.wire import split_uid
from batchflow.sessions.receiving.checkpoint import Checkpoint, DeliveryRecord, Ranges

if TYPE_CHECKING:
    from batchflow.ports.broker import Mailbox
    from batchflow.sessions.context import SessionContext

logger = logging.getLogger(__name__)

SAVE_INTERVAL: Final = 1.0
"""Maximum number of seconds between two saves while there is something to save."""


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
        """Return when the disk has the uid. Raises OSError."""
        if uid not in self and not self._file.closed:
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(uid.encode("ascii"))
                os.fsync(self._file.fileno())
                self._file.write(b"\n")
            except OSError:
                self._file.truncate(end)
                raise
            self._add(uid)

    def close(self) -> None:
        self._file.close()


class CheckpointStore:
    """Reads and saves the checkpoint of a session that can be found again by its name."""

    def __init__(self, context: SessionContext, journal: str | os.PathLike[str] | None) -> None:
        """`journal`: the path of a file on this host. Raises `ConfigurationError` when it cannot be used."""
        self._context = context
        self._journal = None if journal is None else Journal(journal)
        self.record = DeliveryRecord(context.incarnation, self._journal)

    @property
    def loaded(self) -> bool:
        """Whether it is known what earlier holders are owed."""
        return self.record.loaded

    async def load(self, mailbox: Mailbox) -> None:
        """Take the mailbox over from its earlier holders.

        Raises `BrokerError`: `MailboxInUse` when a later one had it before this one came to it.
        """
        notices, record = self._context.notices, self.record
        try:
            checkpoint = Checkpoint.decode(await mailbox.get_state())
        except ProtocolError as error:
            notices.warn(f"what earlier holders of this mailbox have read is not known: {error}")
            checkpoint = Checkpoint()
        if record.was_replaced(checkpoint):
            raise self._taken_over()
        owed = record.enter(checkpoint)
        await mailbox.set_state(checkpoint.encode())
        record.load(checkpoint)
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

    async def save(self, mailbox: Mailbox, submitted: int) -> None:
        """Return when all that was consumed until now is saved. Raises `BrokerError`.

        `submitted`: tasks that the broker has accepted or refused.
        """
        if not self.record.is_behind(submitted):
            return
        state = self.record.to_save(submitted)
        try:
            await mailbox.set_state(state)
        except BaseException:
            self.record.not_saved()
            raise

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
