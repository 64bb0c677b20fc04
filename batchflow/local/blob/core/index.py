"""Core of the local Blob service: which containers, blobs and staged blocks there are. No I/O, no clock.

Content lies in files that a shell writes and removes; here a file is only its name. Rules:

- A `Blob` is an immutable snapshot: each change replaces it, so a reader that holds one sees one version.
- Every change stamps a new ETag, larger than any before it, and the time that the caller passed in.
- One file belongs to one blob or to one staged block. A change returns the files that nothing refers to any
  more, and the shell removes them: a file is in the index or among the dropped, never both, never neither.
- Blocks are staged per blob name, beside any committed blob; Put Blob and Put Block List drop them all
  (Azure's rule), deleting the blob leaves them alone.
- Content that has to be put together first takes two steps: `plan_block_list` says what the new file is made
  of; when the file is there and the plan is still the same, `commit_block_list` makes it the blob. Likewise
  `append_target` and `commit_append`, which refuses with `StaleSnapshot` when the target has changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.model import (
    MAX_BLOCKS,
    MAX_NAME,
    MAX_PAGE,
    MAX_POLICIES,
    NO_CONDITIONS,
    BlobKind,
    BlobPage,
    Block,
    BlockChoice,
    BlockPlan,
    Change,
    Conditions,
    ContainerPage,
    Content,
    ContentSettings,
    FileRange,
    Listed,
    Metadata,
    Revision,
    StoredAccessPolicy,
    StoredBlob,
    StoredContainer,
)

_CONTAINER_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


class StaleSnapshot(Exception):
    """What a write was planned from has changed in the meantime; plan it again."""


class BlobIndex:
    """All containers of one account. Methods raise BlobRefused where the service would refuse."""

    def __init__(self) -> None:
        self._containers: dict[str, StoredContainer] = {}
        self._last_tick = 0

    # Containers

    def create_container(self, name: str, metadata: Metadata, now: float) -> StoredContainer:
        """Create a container, or raise CONTAINER_ALREADY_EXISTS."""
        if not 3 <= len(name) <= 63:
            raise BlobRefused(BlobErrorCode.OUT_OF_RANGE_INPUT, "A container's name has 3 to 63 characters.")
        if not _CONTAINER_NAME.match(name):
            raise BlobRefused(BlobErrorCode.INVALID_RESOURCE_NAME, f"{name!r} is not a valid container name.")
        if name in self._containers:
            raise BlobRefused(BlobErrorCode.CONTAINER_ALREADY_EXISTS)
        self._containers[name] = StoredContainer(name, self._stamp(now), metadata)
        return self._containers[name]

    def container(self, name: str) -> StoredContainer:
        """Return the container, or raise CONTAINER_NOT_FOUND."""
        try:
            return self._containers[name]
        except KeyError:
            raise BlobRefused(BlobErrorCode.CONTAINER_NOT_FOUND) from None

    def delete_container(self, name: str, conditions: Conditions = NO_CONDITIONS) -> tuple[str, ...]:
        """Remove a container with all that is in it; return the files to remove."""
        container = self.container(name)
        conditions.check_write(container.stamp)
        del self._containers[name]
        return tuple(_files(container))

    def set_container_metadata(
        self, name: str, metadata: Metadata, now: float, conditions: Conditions = NO_CONDITIONS
    ) -> StoredContainer:
        """Replace a container's metadata."""
        container = self.container(name)
        conditions.check_write(container.stamp)
        container.metadata = metadata
        container.stamp = self._stamp(now)
        return container

    def set_policies(
        self,
        name: str,
        policies: Sequence[StoredAccessPolicy],
        now: float,
        conditions: Conditions = NO_CONDITIONS,
    ) -> StoredContainer:
        """Replace a container's stored access policies: at most five, with distinct ids (Azure's rule)."""
        container = self.container(name)
        conditions.check_write(container.stamp)
        if len(policies) > MAX_POLICIES or len({policy.id for policy in policies}) != len(policies):
            raise BlobRefused(
                BlobErrorCode.INVALID_XML_DOCUMENT, "At most five policies, each with an id of its own."
            )
        container.policies = tuple(policies)
        container.stamp = self._stamp(now)
        return container

    def policy(self, container: str, policy_id: str) -> StoredAccessPolicy | None:
        """Return the stored access policy as it stands now, or None."""
        found = self._containers.get(container)
        if found is None:
            return None
        return next((policy for policy in found.policies if policy.id == policy_id), None)

    def list_containers(self, prefix: str = "", start: str = "", limit: int = MAX_PAGE) -> ContainerPage:
        """List containers by name, from `start` on."""
        names = sorted(name for name in self._containers if name.startswith(prefix) and name >= start)
        page = tuple(self._containers[name] for name in names[:limit])
        return ContainerPage(page, names[limit] if len(names) > limit else None)

    # Blobs

    def blob(self, container: str, name: str, conditions: Conditions = NO_CONDITIONS) -> StoredBlob:
        """Return a blob's current version for reading."""
        blob = self._existing(container, name)
        conditions.check_read(blob.stamp)
        return blob

    def check_put(
        self, container: str, name: str, conditions: Conditions = NO_CONDITIONS, *, may_overwrite: bool = True
    ) -> None:
        """Raise what `put_blob` would raise now; asked before a body is received."""
        current = self.container(container).blobs.get(name)
        if not 0 < len(name) <= MAX_NAME:
            raise BlobRefused(BlobErrorCode.INVALID_RESOURCE_NAME, "A blob name has 1 to 1,024 characters.")
        stamp = current.stamp if current else None
        conditions.check_write(stamp, existing=BlobErrorCode.BLOB_ALREADY_EXISTS)
        if current is not None and not may_overwrite:
            raise BlobRefused(BlobErrorCode.UNAUTHORIZED_BLOB_OVERWRITE)

    def put_blob(
        self,
        container: str,
        name: str,
        content: Content,
        now: float,
        conditions: Conditions = NO_CONDITIONS,
        *,
        may_overwrite: bool = True,
    ) -> Change:
        """Make `content` the blob, over any earlier one; staged blocks are dropped."""
        self.check_put(container, name, conditions, may_overwrite=may_overwrite)
        return self._replace(container, name, StoredBlob(content, self._stamp(now), now))

    def delete_blob(
        self, container: str, name: str, conditions: Conditions = NO_CONDITIONS
    ) -> tuple[str, ...]:
        """Remove a blob; its staged blocks stay. Return the files to remove."""
        blob = self._existing(container, name)
        conditions.check_write(blob.stamp)
        del self._containers[container].blobs[name]
        return (blob.content.file,)

    def set_metadata(
        self,
        container: str,
        name: str,
        metadata: Metadata,
        now: float,
        conditions: Conditions = NO_CONDITIONS,
    ) -> StoredBlob:
        """Replace a blob's metadata."""
        blob = self._existing(container, name)
        conditions.check_write(blob.stamp)
        return self._touch(container, name, replace(blob.content, metadata=metadata), now)

    def set_settings(
        self,
        container: str,
        name: str,
        settings: ContentSettings,
        now: float,
        conditions: Conditions = NO_CONDITIONS,
    ) -> StoredBlob:
        """Replace all of a blob's content settings: what is left out is cleared."""
        blob = self._existing(container, name)
        conditions.check_write(blob.stamp)
        return self._touch(container, name, replace(blob.content, settings=settings), now)

    def list_blobs(
        self, container: str, prefix: str = "", delimiter: str = "", start: str = "", limit: int = MAX_PAGE
    ) -> BlobPage:
        """List blobs by name, from `start` on; with a delimiter, names are cut after it and gathered."""
        blobs = self.container(container).blobs
        entries: list[Listed] = []
        for name in sorted(name for name in blobs if name.startswith(prefix)):
            entry = _entry(name, blobs[name], prefix, delimiter)
            if entry.name < start or (entries and entries[-1].name == entry.name):
                continue
            if len(entries) == limit:
                return BlobPage(tuple(entries), entry.name)
            entries.append(entry)
        return BlobPage(tuple(entries), None)

    # Blocks

    def stage_block(self, container: str, name: str, block: Block, file: str) -> tuple[str, ...]:
        """Keep an uncommitted block; one of the same id is replaced. Return the files to remove."""
        home = self.container(container)
        if (blob := home.blobs.get(name)) is not None:
            _require(blob, BlobKind.BLOCK)
        staged = home.staged.setdefault(name, {})
        # Azure: the ids of one blob's blocks all have the same length.
        if any(len(other) != len(block.id) for other in staged):
            raise BlobRefused(
                BlobErrorCode.INVALID_BLOB_OR_BLOCK, "The ids of a blob's blocks differ in length."
            )
        if block.id not in staged and len(staged) >= 2 * MAX_BLOCKS:
            raise BlobRefused(BlobErrorCode.BLOCK_COUNT_EXCEEDS_LIMIT)
        replaced = staged.get(block.id)
        staged[block.id] = (block, file)
        return (replaced[1],) if replaced else ()

    def block_list(self, container: str, name: str) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
        """Return a blob's committed and uncommitted blocks; BLOB_NOT_FOUND when it has neither."""
        home = self.container(container)
        blob, staged = home.blobs.get(name), home.staged.get(name)
        if blob is None and not staged:
            raise BlobRefused(BlobErrorCode.BLOB_NOT_FOUND)
        if blob is not None:
            _require(blob, BlobKind.BLOCK)
        return blob.blocks if blob else (), tuple(block for block, _ in (staged or {}).values())

    def plan_block_list(
        self,
        container: str,
        name: str,
        choices: Iterable[tuple[BlockChoice, str]],
        conditions: Conditions = NO_CONDITIONS,
        *,
        may_overwrite: bool = True,
    ) -> BlockPlan:
        """Say what the file of a block list is made of, or raise INVALID_BLOCK_LIST."""
        self.check_put(container, name, conditions, may_overwrite=may_overwrite)
        home = self._containers[container]
        blob = home.blobs.get(name)
        if blob is not None:
            _require(blob, BlobKind.BLOCK)
        committed = _located(blob)
        staged = {
            block.id: (block, FileRange(file, 0, block.size))
            for block, file in home.staged.get(name, {}).values()
        }
        found = [_choose(choice, block_id, committed, staged) for choice, block_id in choices]
        if len(found) > MAX_BLOCKS:
            raise BlobRefused(BlobErrorCode.BLOCK_LIST_TOO_LONG)
        return BlockPlan(tuple(source for _, source in found), tuple(block for block, _ in found))

    def commit_block_list(
        self, container: str, name: str, plan: BlockPlan, content: Content, now: float
    ) -> Change:
        """Make `content`, put together by a plan that still holds, the blob; staged blocks are dropped."""
        return self._replace(container, name, StoredBlob(content, self._stamp(now), now, plan.blocks))

    # Append blobs

    def append_target(
        self,
        container: str,
        name: str,
        size: int,
        conditions: Conditions = NO_CONDITIONS,
        *,
        position: int | None = None,
        max_size: int | None = None,
    ) -> StoredBlob:
        """Return the version that `size` bytes may be appended to, at its end."""
        blob = self._existing(container, name)
        _require(blob, BlobKind.APPEND)
        conditions.check_write(blob.stamp)
        if position is not None and position != blob.content.size:
            raise BlobRefused(BlobErrorCode.APPEND_POSITION_CONDITION_NOT_MET)
        if max_size is not None and blob.content.size + size > max_size:
            raise BlobRefused(BlobErrorCode.MAX_BLOB_SIZE_CONDITION_NOT_MET)
        if blob.appended >= MAX_BLOCKS:
            raise BlobRefused(BlobErrorCode.BLOCK_COUNT_EXCEEDS_LIMIT)
        return blob

    def commit_append(
        self, container: str, name: str, target: StoredBlob, size: int, now: float
    ) -> StoredBlob:
        """Count in `size` bytes written at the end of `target`; StaleSnapshot when it has changed."""
        if self._existing(container, name).stamp != target.stamp:
            raise StaleSnapshot
        content = replace(target.content, size=target.content.size + size)
        grown = replace(target, content=content, stamp=self._stamp(now), appended=target.appended + 1)
        self._containers[container].blobs[name] = grown
        return grown

    # Inside

    def _existing(self, container: str, name: str) -> StoredBlob:
        try:
            return self.container(container).blobs[name]
        except KeyError:
            raise BlobRefused(BlobErrorCode.BLOB_NOT_FOUND) from None

    def _replace(self, container: str, name: str, blob: StoredBlob) -> Change:
        home = self._containers[container]
        dropped = [file for _, file in home.staged.pop(name, {}).values()]
        if (old := home.blobs.get(name)) is not None:
            blob = replace(blob, created=old.created)
            dropped.append(old.content.file)
        home.blobs[name] = blob
        return Change(blob, tuple(dropped))

    def _touch(self, container: str, name: str, content: Content, now: float) -> StoredBlob:
        blobs = self._containers[container].blobs
        blobs[name] = replace(blobs[name], content=content, stamp=self._stamp(now))
        return blobs[name]

    def _stamp(self, now: float) -> Revision:
        self._last_tick = max(self._last_tick + 1, int(now * 10_000_000))
        return Revision(f'"0x{self._last_tick:X}"', now)


def _require(blob: StoredBlob, kind: BlobKind) -> None:
    if blob.content.kind is not kind:
        raise BlobRefused(BlobErrorCode.INVALID_BLOB_TYPE)


def _files(container: StoredContainer) -> Iterable[str]:
    for blob in container.blobs.values():
        yield blob.content.file
    for staged in container.staged.values():
        for _, file in staged.values():
            yield file


def _entry(name: str, blob: StoredBlob, prefix: str, delimiter: str) -> Listed:
    if delimiter and (cut := name.find(delimiter, len(prefix))) >= 0:
        return Listed(name[: cut + len(delimiter)], None)
    return Listed(name, blob)


_Located = Mapping[str, tuple[Block, FileRange]]


def _located(blob: StoredBlob | None) -> _Located:
    """Return where in the blob's file each committed block lies."""
    located: dict[str, tuple[Block, FileRange]] = {}
    offset = 0
    for block in blob.blocks if blob else ():
        located[block.id] = (block, FileRange(blob.content.file if blob else "", offset, block.size))
        offset += block.size
    return located


def _choose(
    choice: BlockChoice, block_id: str, committed: _Located, staged: _Located
) -> tuple[Block, FileRange]:
    match choice:
        case "Committed":
            found = committed.get(block_id)
        case "Uncommitted":
            found = staged.get(block_id)
        case "Latest":
            found = staged.get(block_id) or committed.get(block_id)
    if found is None:
        raise BlobRefused(BlobErrorCode.INVALID_BLOCK_LIST)
    return found
