"""How tasks that wait for others are written down, so that a later session of the same name goes on. Pure.

A document has the tasks that were submitted together. A task is named by its uid, and so is what it waits
for. Of inputs that had ended before it was submitted the document has the results, because their messages
are gone; the messages of the others stay in the mailbox until the task was sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.functions.command import FunctionCommand
from batchflow.protocol import wire
from batchflow.protocol.fields import FieldError, carried, from_base64, to_base64
from batchflow.protocol.values.encoding import Encoded
from batchflow.protocol.values.received import ReceivedValue
from batchflow.protocol.wire import ResultItem
from batchflow.retry import RetryPolicy
from batchflow.sessions.records.submission import Submission, TaskInput
from batchflow.sessions.records.tracker import Entry
from batchflow.sessions.workflows.graph import RunsWith, Waiting
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION: Final = 2
"""Documents of version 2 have tasks that take files. Those without have version 1, which others read, too."""


@frozen
class StoredTask:
    """A task that waited for others when it was written."""

    uid: str
    index: int
    task_id: str
    submitted_at: float
    submission: Submission
    """Without its inputs."""
    inputs: tuple[str, ...]
    """The tasks whose values or files stand in the arguments, by their uids."""
    files: tuple[str | None, ...]
    """The names of these files, in the same order; None for a value."""
    waits: tuple[str, ...]
    """All tasks that it waits for."""
    runs_with: RunsWith
    values: Mapping[str, ResultItem]
    """The results that were there when it was submitted."""

    def waiting(self, entry: Entry, find: Callable[[str], Entry]) -> Waiting:
        """Return the task as the graph has it. `find`: returns the task of a uid."""
        self.submission.inputs = tuple(
            TaskInput(find(uid), file) for uid, file in zip(self.inputs, self.files, strict=True)
        )
        size = len(self.submission.encoded) if isinstance(self.submission.encoded, bytes) else 0
        return Waiting(entry, self.submission, tuple(map(find, self.waits)), self.runs_with, size)


def encode(tasks: Iterable[Waiting]) -> bytes:
    """Return the document of tasks that wait."""
    written = [_written(task) for task in tasks]
    return orjson.dumps({"v": VERSION if any("files" in task for task in written) else 1, "tasks": written})


def decode(data: bytes) -> list[StoredTask]:
    """Read a document. Raises `ProtocolError`."""
    try:
        document = orjson.loads(data)
        if document["v"] > VERSION:
            raise ProtocolError(f"tasks that wait, of version {document['v']}: install a newer batchflow")
        return [_read(fields) for fields in document["tasks"]]
    except (ConfigurationError, FieldError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"a document of tasks that wait cannot be read: {error!r}") from error


def _written(waiting: Waiting) -> dict[str, Any]:
    submission, entry, runs_with = waiting.submission, waiting.entry, waiting.runs_with
    encoded, function = submission.encoded, submission.function
    if isinstance(encoded, Encoded):
        encoded = encoded.join()
    fields = {
        "uid": entry.uid,
        "index": entry.index,
        "taskid": entry.task_id,
        "submitted": entry.submitted_at,
        "command": submission.command,
        "params": to_base64(encoded) if isinstance(encoded, bytes) else submission.arguments,
        "tag": submission.tag,
        "timeout": submission.timeout,
        "memory": submission.memory_limit,
        "retry": None if submission.retry is None else submission.retry.fields(),
        "stream": submission.stream_output,
        "on_failure": submission.on_failure,
        "expires": submission.expires,
        "requires": submission.requires,
        "priority": submission.priority,
        "keywords": None if function is None else bool(function.keywords),
        "inputs": [each.entry.uid for each in submission.inputs],
        "waits": [each.uid for each in waiting.inputs],
        "bundle": runs_with.bundle,
        "pickle": runs_with.pickle,
        "environment": runs_with.environment,
        "values": [_result(each) for each in waiting.inputs if each.done],
    }
    if any(each.file is not None for each in submission.inputs):
        fields["files"] = [each.file for each in submission.inputs]
    return fields


def _result(entry: Entry) -> Any:
    """Return a result as it travels. A value that came in a container goes as it came."""
    item = entry.read()
    if isinstance(item.value, ReceivedValue):
        item = replace(item, value=carried(bytes(item.value.data)))
    return orjson.Fragment(wire.join("results", [wire.encode(item)]))


def _read(fields: dict[str, Any]) -> StoredTask:
    params = fields["params"]
    function = None
    if fields["keywords"] is not None:
        function = FunctionCommand(fields["command"], keywords={"": None} if fields["keywords"] else {})
    retry = fields["retry"]
    submission = Submission(
        command=fields["command"],
        arguments=[] if isinstance(params, str) else params,
        encoded=from_base64(params) if isinstance(params, str) else None,
        task_id=fields["taskid"],
        tag=fields["tag"],
        timeout=fields["timeout"],
        memory_limit=fields["memory"],
        retry=None if retry is None else RetryPolicy.read(retry),
        stream_output=fields["stream"],
        on_failure=fields["on_failure"],
        expires=fields.get("expires"),
        requires=fields.get("requires"),
        priority=fields.get("priority"),
        function=function,
    )
    results = [item for each in fields["values"] for item in wire.decode(orjson.dumps(each))]
    return StoredTask(
        uid=fields["uid"],
        index=fields["index"],
        task_id=fields["taskid"],
        submitted_at=fields["submitted"],
        submission=submission,
        inputs=tuple(fields["inputs"]),
        files=tuple(fields.get("files", [None] * len(fields["inputs"]))),
        waits=tuple(fields["waits"]),
        runs_with=RunsWith(fields["bundle"], fields["pickle"], fields["environment"]),
        values={item.uid: item for item in results if isinstance(item, ResultItem)},
    )
