"""A slot's working directories: the files of a bundle by name, and an `outputs` folder.

Rules:

- One directory for each bundle that the slot used lately, named by the bundle's hash and prepared once. A
  task finds in it exactly the bundle's files and an empty `outputs`; afterwards everything else is removed
  and what was changed or removed is put back, and only when a look at the stamps (`system.file_stamps`) shows
  that there is something to do.
- No write to a place reaches the cached files, nor another slot: the files of a place are copies, read-only.
  A copy is checked against its SHA-256 after it was made, so a cached file that was changed is never used.
- Tasks of other slots are of the same user, and can write here. So before the tasks of another session run in
  a place, and once a second, the agent compares the files' signatures, and restores what differs.
- Beside the directories is `home`, which tasks get as their home and as Batch's working directory. Nothing of
  the agent is in it.
- What a task leaves in `outputs` is moved out of the way, so that the slot is free while it is uploaded.
  Regular files only; bytes of a name that are no UTF-8 are replaced, for names travel as text.

Not safe to use from two coroutines at once: a slot runs one task at a time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from batchflow.errors import ConfigurationError, StorageError
from batchflow.support.frozen import frozen
from node_agent.system import file_stamps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batchflow.protocol.bundle import Bundle, BundleFile
    from node_agent.bundles.stored_file import StoredFile

OUTPUTS: Final = "outputs"
_KEPT_BUNDLES: Final = 4


@frozen
class Place:
    """A prepared working directory."""

    bundle: Bundle
    files: Path
    """The folder of the cached files."""
    directory: Path
    watched: list[str]
    """Paths in the directory whose stamps, with its own, show whether a task changed something."""


class Workspace:
    """The working directories of one slot."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self._identity: tuple[int, int] | None = None
        """Device and inode of the folder that was made."""
        self._places: dict[str, Place] = {}
        self._signatures: dict[Path, dict[str, file_stamps.Signature | None]] = {}
        """Of the files of each place, by its directory."""
        self._moved = 0

    def restore(self) -> None:
        """Make the slot's folder anew, with nothing in it but an empty home. Raises OSError."""
        self._places.clear()
        self._signatures.clear()
        remove(self.root)
        self.home.mkdir(parents=True)
        self._identity = _identity(self.root)

    def is_intact(self) -> bool:
        """Return whether the slot's folder is the one that was made."""
        return self._identity is not None and _identity(self.root) == self._identity

    def require_intact(self) -> None:
        """Raise FileNotFoundError when the slot's folder is gone."""
        if not self.is_intact():
            raise FileNotFoundError(f"the slot's folder {self.root} is gone")

    async def prepare(self, bundle: Bundle, files: Path) -> Place:
        """Return a clean working directory for a bundle.

        Raises `ConfigurationError` for a bundle that cannot be written to disk, `StorageError` when a
        cached file has changed since it was fetched. Safe to cancel.
        """
        place = self._places.pop(bundle.hash, None)
        if place is None:
            place = await asyncio.to_thread(self._make, bundle, files)
        self._places[bundle.hash] = place
        while len(self._places) > _KEPT_BUNDLES:
            oldest = self._places.pop(next(iter(self._places)))
            self._signatures.pop(oldest.directory, None)
            await asyncio.to_thread(remove, oldest.directory)
        return place

    async def bring(self, place: Place, files: Mapping[str, StoredFile]) -> None:
        """Put files of other tasks into a place, by their paths in it, for one task. `collect` removes them.

        Raises OSError.
        """
        await asyncio.to_thread(self._bring, place, files)

    @staticmethod
    def _bring(place: Place, files: Mapping[str, StoredFile]) -> None:
        for name, file in files.items():
            target = place.directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.copy_to(str(target))

    async def check(self, place: Place) -> bool:
        """Restore what others than the place's own tasks changed; return whether there was something.

        Then `prepare` returns another place. Raises as `prepare` does.
        """
        signatures = self._signatures.get(place.directory, {})
        if len(signatures) <= file_stamps.QUICK:
            differs = self._differs(place, signatures)
        else:
            differs = await asyncio.to_thread(self._differs, place, dict(signatures))
        if not differs:
            return False
        folder, _ = await self.collect(place)
        if folder is not None:
            await asyncio.to_thread(remove, folder)
        return True

    def _differs(self, place: Place, signatures: dict[str, file_stamps.Signature | None]) -> bool:
        return self.touched(place) or file_stamps.differ(signatures)

    def touched(self, place: Place) -> bool:
        """Tell whether a task changed something."""
        return file_stamps.touched([str(place.directory), *place.watched])

    async def collect(self, place: Place) -> tuple[Path | None, tuple[Path, ...]]:
        """Clean a place after a task; return (folder, files) of what the task left in `outputs`.

        The caller removes the folder; None when nothing was left. The next `prepare` returns another place in
        the same directory, because files may have been restored. A place that cannot be cleaned is forgotten.
        Then the next `prepare` creates it again, and raises when that fails.
        """
        return await asyncio.to_thread(self._collect, place)

    def close(self) -> None:
        """Remove everything."""
        self._places.clear()
        self._signatures.clear()
        remove(self.root)

    def _make(self, bundle: Bundle, files: Path) -> Place:
        if OUTPUTS in bundle:
            raise ConfigurationError(f"files: {OUTPUTS!r} is the name of the output folder, not of a file")
        directory = self.root / bundle.hash[:20]
        remove(directory)
        folders = {PurePosixPath(OUTPUTS), *(path for file in bundle.files for path in _folders(file.name))}
        paths = [str(directory), *sorted(str(directory / folder) for folder in folders)]
        for path in paths:
            os.makedirs(path, exist_ok=True)
        self._signatures[directory] = {}
        self._place_files(files, directory, bundle.files)
        for path in reversed(paths):
            file_stamps.stamp(path)
        if os.geteuid() == 0:  # for others the mode refuses writes, and there may be thousands
            paths += [str(directory / file.name) for file in bundle.files]
        return Place(bundle, files, directory, paths[1:])

    def _place_files(self, source: Path, directory: Path, files: Sequence[BundleFile]) -> None:
        """Copy files of a bundle into a place, and check the copies. Raises `StorageError`."""
        targets = [str(directory / file.name) for file in files]
        for file, target in zip(files, targets, strict=True):
            try:
                mode = stat.S_IMODE(os.stat(source / file.name, follow_symlinks=False).st_mode)
                file_stamps.copy(str(source / file.name), target)
            except FileNotFoundError as error:
                raise _damaged(file) from error
            os.chmod(target, mode)
            file_stamps.stamp(target)
        file_stamps.let_clock_go_on(targets)
        signatures = {target: file_stamps.signature(target) for target in targets}
        for file, target in zip(files, targets, strict=True):
            if not file_stamps.holds(target, file.size, file.sha256):
                raise _damaged(file)
        self._signatures[directory].update(signatures)

    def _collect(self, place: Place) -> tuple[Path | None, tuple[Path, ...]]:
        moved: tuple[Path | None, tuple[Path, ...]] = (None, ())
        own = {place.directory / file.name for file in place.bundle.files}
        if names := [path for path in _regular_files(place.directory / OUTPUTS) if path not in own]:
            moved = self._move(place.directory / OUTPUTS, names)
        former = self._places.pop(place.bundle.hash, None)
        with suppress(OSError, StorageError):
            self._restore(place, own)
            if former is not None:
                self._places[place.bundle.hash] = replace(place)
        return moved

    def _move(self, outputs: Path, names: list[Path]) -> tuple[Path, tuple[Path, ...]]:
        self._moved += 1
        folder = self.root / f"moved-{self._moved}" / OUTPUTS
        remove(folder)
        targets = []
        for path in names:
            name = os.fsencode(path.relative_to(outputs)).decode("utf-8", "replace")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
            targets.append(target)
        return folder.parent, tuple(targets)

    def _restore(self, place: Place, own: set[Path]) -> None:
        """Remove files that do not belong to the bundle, and restore those that do."""
        folders = {place.directory, place.directory / OUTPUTS}
        folders |= {place.directory / path for file in place.bundle.files for path in _folders(file.name)}
        for folder in sorted(folders):
            if folder.is_symlink() or not folder.is_dir():
                remove(folder)
                folder.mkdir()
            for entry in os.scandir(folder):
                path = Path(entry.path)
                kept = path in own or (path in folders and entry.is_dir(follow_symlinks=False))
                if not kept:
                    remove(path)
        known = self._signatures.get(place.directory, {})
        changed = [
            file
            for file in place.bundle.files
            if (found := known.get(name := str(place.directory / file.name))) is None
            or file_stamps.signature(name) != found
        ]
        for file in changed:
            remove(place.directory / file.name)
        self._signatures.setdefault(place.directory, {})
        self._place_files(place.files, place.directory, changed)
        for folder in sorted(folders, reverse=True):
            file_stamps.stamp(str(folder))


def _damaged(file: BundleFile) -> StorageError:
    return StorageError(f"the cached file {file.name} was changed on disk", retryable=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another one of its name; None when there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, of any modes. Does nothing when it does not exist."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except PermissionError:
        _open_up(path)
        shutil.rmtree(path)


def _open_up(path: Path) -> None:
    """Give the owner the rights to empty the folders."""
    os.chmod(path, stat.S_IRWXU)
    for folder, names, _ in os.walk(path):
        for name in names:
            if not os.path.islink(inner := os.path.join(folder, name)):
                os.chmod(inner, stat.S_IRWXU)


def _folders(name: str) -> Iterator[PurePosixPath]:
    """Return the parent folders of a name, without the root."""
    return (folder for folder in PurePosixPath(name).parents if str(folder) != ".")


def _regular_files(folder: Path) -> list[Path]:
    """Return the regular files of a folder, sorted. Links are not followed."""
    if folder.is_symlink():
        return []
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            if stat.S_ISREG(path.lstat().st_mode):
                found.append(path)
    return sorted(found)
