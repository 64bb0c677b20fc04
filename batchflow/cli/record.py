"""The record of a run on this machine, by which the run can be resumed after any end.

A run is a folder: `run.json` says what it is, `inputs.jsonl` holds its items, `results.jsonl` each result
that came, once, in the order of coming. A result is written here first, then where it was asked for: whatever
happens to that, `batchflow results NAME` has it. A result is told by the number of its input.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Final

from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.sources.tables import Item
from batchflow.config.loader import nearest
from batchflow.display.meter import Meter

_KEPT: Final = 20
"""Runs that are remembered after their end."""
_NAMED: Final = 10
"""Number of inputs that a summary names of each kind."""
_HINTED: Final = 5
"""Number of runs that the message about an unknown run names."""


FileSpec = str | dict[str, str]
"""Files of a run: an absolute path, or several by the names that tasks know them by."""


def named(files: list[FileSpec]) -> list[str]:
    """Return what to call the files of a run."""
    return [each for spec in files for each in ([spec] if isinstance(spec, str) else spec.values())]


@dataclass(slots=True)
class Plan:
    """The plan of a run: all that is needed to resume it."""

    name: str
    count: int
    pool: str | None
    job: str
    local: bool = False
    """On a local cloud of its own, which ends with the command."""
    nodes: int = 2
    config: str | None = None
    profile: str | None = None
    files: list[FileSpec] | None = None
    """None: the pool's own."""
    requirements: str | list[str] | None = None
    """The Python packages of its tasks: a list, an absolute path, or "current"; None: the pool's."""
    output: str | None = None
    timeout: float | None = None
    retries: int = 0
    memory_limit: int | None = None
    stream_output: bool = False
    budget: str | None = None
    expires: float | None = None
    started_at: float = field(default_factory=time.time)
    accepted: int = 0
    """Inputs that the broker has accepted: the first ones."""


class RunRecord:
    """A run's folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.begun = False
        """Whether anything can have been sent."""
        self._results: IO[str] | None = None

    @classmethod
    def create(cls, plan: Plan, items: list[Item]) -> RunRecord:
        """Create the record of a run. Raises `CommandError` when there is a run of that name."""
        from batchflow.protocol.layout import check_name

        check_name("run name", plan.name)
        folder = runs_folder() / plan.name
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise CommandError(
                f"there is a run {plan.name!r} already: go on with it by --resume {plan.name}, "
                "or take another --session",
                Exit.CONFLICT,
            ) from None
        except OSError as error:
            raise CommandError(f"cannot keep the run: {folder}: {error.strerror}", Exit.OUTPUT) from error
        with (folder / "inputs.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(_fields(item))}\n" for item in items)
        record = cls(folder, plan)
        record.save()
        _forget_old(folder.parent)
        return record

    @classmethod
    def open(cls, name: str) -> RunRecord:
        """Open the record of a run. Raises `CommandError`, with a hint, when there is none of that name."""
        folder = runs_folder() / name
        try:
            document = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CommandError(f"this machine has no run {name!r}{_hint(name)}", Exit.NOT_FOUND) from None
        except (OSError, ValueError) as error:
            raise CommandError(f"{folder}: the run cannot be read: {error}", Exit.USAGE) from error
        known = {item.name for item in fields(Plan)}
        record = cls(folder, Plan(**{key: value for key, value in document.items() if key in known}))
        record.begun = True
        return record

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Write results here. Raises `CommandError` while another process does."""
        path = self.folder / "results.jsonl"
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"run {self.plan.name!r} is in the hands of another process"
                raise CommandError(message, Exit.CONFLICT) from None
            self._results = file
            yield
            self._results = None

    def items(self) -> list[Item]:
        with (self.folder / "inputs.jsonl").open(encoding="utf-8") as file:
            return [Item(*json.loads(line)) for line in file]

    def results(self) -> Iterator[dict[str, Any]]:
        """Return the results that were written, in that order."""
        with contextlib.suppress(FileNotFoundError), (self.folder / "results.jsonl").open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def meter(self) -> Meter:
        """Return a meter of the inputs that have ended."""
        meter = Meter(total=self.plan.count)
        for document in self.results():
            meter.count(document["status"])
        return meter

    def add(self, result: dict[str, Any]) -> None:
        assert self._results is not None
        self._results.write(f"{json.dumps(result)}\n")
        self._results.flush()

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self) -> None:
        """Write the record, which appears whole or not at all."""
        draft = self.folder / "run.json.new"
        draft.write_text(json.dumps(asdict(self.plan)), encoding="utf-8")
        os.replace(draft, self.folder / "run.json")


def summary(record: RunRecord) -> str:
    """Return how the run's tasks ended, which of them not well, and what to do about those."""
    meter = record.meter()
    lines = [meter.outcome]
    if left := record.plan.count - meter.done:
        lines[0] += f", {left} to come"
    unsuccessful = sorted(
        (document["status"] != "failed", document["index"], document["status"])
        for document in record.results()
        if document["status"] != "succeeded"
    )
    for status in dict.fromkeys(status for _, _, status in unsuccessful):
        indices = [index for _, index, each in unsuccessful if each == status]
        more = f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else ""
        what = "input" if len(indices) == 1 else "inputs"
        lines.append(f"{status}: {what} {', '.join(map(str, indices[:_NAMED]))}{more}")
    if unsuccessful:
        name, first = record.plan.name, unsuccessful[0][1]
        lines.append(f"why: batchflow logs {first} --run {name}")
        lines.append(f"here, in a debugger: batchflow replay {first} --run {name} --pdb")
        lines.append(f"once more: batchflow run --failed-of {name}")
    return "\n".join(lines)


def exit_code(meter: Meter) -> Exit:
    """Return the exit code of a command that shows the end of a run."""
    return Exit.FAILED if meter.unsuccessful else Exit.OK


def runs_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "batchflow" / "runs"


def run_names() -> list[str]:
    """Return the names of all runs, the latest first."""
    folders = [path for path in runs_folder().glob("*") if (path / "run.json").is_file()]
    return [path.name for path in sorted(folders, key=_age)]


def known_runs(context: object, parameter: object, incomplete: str) -> list[str]:
    """Complete the names of runs in a shell."""
    return [name for name in run_names() if name.startswith(incomplete)]


def latest() -> str:
    """Return the name of the latest run. Raises `CommandError` when there is none."""
    names = run_names()
    if not names:
        raise CommandError("this machine has no run; begin one: batchflow run", Exit.NOT_FOUND)
    return names[0]


def _hint(name: str) -> str:
    """Return a hint: the names that are near, or else the latest ones."""
    names = run_names()
    close = difflib.get_close_matches(name, names, 1)
    return nearest(name, close or names[:_HINTED]) if names else "; begin one: batchflow run"


def _age(folder: Path) -> float:
    return -(folder / "run.json").stat().st_mtime


def _forget_old(folder: Path) -> None:
    """Remove the records of complete runs, except for the latest."""
    complete = [name for name in run_names() if _is_complete(folder / name)]
    for name in complete[_KEPT:]:
        shutil.rmtree(folder / name, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    try:
        return RunRecord.open(folder.name).meter().complete
    except CommandError:
        return False


def _fields(item: Item) -> list[Any]:
    """Return an item as a line of the record has it. What no workflow has is left out."""
    fields: list[Any] = [item.command, item.arguments]
    if item.expires is not None:
        return [*fields, item.after, item.label, item.expires]
    return [*fields, item.after, item.label] if item.after or item.label is not None else fields
