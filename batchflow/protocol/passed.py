"""Values and files that a task takes from where other tasks left them, and that no client has moved. Pure.

The arguments of such a task have ``{"$input": number}`` in the places of these values (see
`values.encoding`), and its field `inputs` says where each one lies: a list of objects, in the order of the
numbers. A value lies in the output container, which agents may not read, so a signature for that one blob
rides with the task.

A file goes into the working directory of the task that takes it. Its path there is the argument, and its
field `files` says where each one lies: a list of objects, in the order of the folders that they go into.

Where both lists are too long for a message, they are in a blob of the control container, which the field
`places` names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any, Final

import orjson

from batchflow.protocol.bundle import check_name
from batchflow.protocol.fields import FieldError, sequence, table, text, whole
from batchflow.support.frozen import frozen

VALUES: Final = "values"
"""What an agent's heartbeat has among `accepts` when the agent fetches such values."""
FILES: Final = "files"
"""What it has there when the agent brings files of other tasks."""
FOLDER: Final = "inputs"
"""The folder of a working directory that such files go into."""
VALID: Final = 7 * 86400.0
"""Seconds for which a signature opens a value, at most: the limit of Entra ID's."""


@frozen
class PassedValue:
    """Where a value lies that a task takes."""

    blob: str
    """In the output container."""
    size: int
    """Bytes."""
    signature: str = field(repr=False)
    """A SAS without '?', which opens this blob alone: a secret."""

    def fields(self) -> dict[str, Any]:
        """Return it as it travels."""
        return {"blob": self.blob, "size": self.size, "sig": self.signature}


def places_document(values: Iterable[PassedValue], files: Iterable[PassedFile]) -> bytes:
    """Return the document of where values and files lie."""
    return orjson.dumps(
        {"inputs": [each.fields() for each in values], "files": [each.fields() for each in files]}
    )


def read_places(data: bytes) -> tuple[list[Any], list[Any]]:
    """Return a task's fields `inputs` and `files` from the document. Raises `FieldError`."""
    try:
        document = table(orjson.loads(data))
    except orjson.JSONDecodeError as error:
        raise FieldError(f"the places of values and files are not JSON: {error}") from error
    return sequence(document.get("inputs", [])), sequence(document.get("files", []))


def read_passed(inputs: Any) -> list[PassedValue]:
    """Read a task's field `inputs`. Raises `FieldError`."""
    found = []
    for each in sequence(inputs):
        fields = table(each)
        if missing := {"blob", "size", "sig"} - fields.keys():
            raise FieldError(f"an input without {min(missing)}")
        found.append(PassedValue(text(fields["blob"]), whole(fields["size"]), text(fields["sig"])))
    return found


@frozen
class PassedFile:
    """Where a file lies that a task takes."""

    name: str
    """As the task that left it knows it: relative to its output folder."""
    blob: str
    signature: str | None = field(repr=False)
    """A SAS without '?', which opens this blob of the output container alone: a secret.

    None: it is a copy in the control container, which agents read.
    """

    def fields(self) -> dict[str, Any]:
        """Return it as it travels."""
        return {"name": self.name, "blob": self.blob, "sig": self.signature}


def path_of(place: int, name: str) -> str:
    """Return where a file goes, relative to the working directory. `place`: among the task's files.

    Each has a folder of its own, so files of one name do not meet.
    """
    return f"{FOLDER}/{place}/{name}"


def read_files(files: Any) -> list[PassedFile]:
    """Read a task's field `files`. Raises `FieldError`, also for a name that leaves its folder."""
    found = []
    for each in sequence(files):
        fields = table(each)
        if missing := {"name", "blob"} - fields.keys():
            raise FieldError(f"a file without {min(missing)}")
        try:
            name = check_name(text(fields["name"]))
        except ValueError as error:
            raise FieldError(f"{error}") from error
        signature = fields.get("sig")
        found.append(PassedFile(name, text(fields["blob"]), None if signature is None else text(signature)))
    return found
