"""Values that a task takes from where other tasks left them, and that no client has moved. Pure.

The arguments of such a task have ``{"$input": number}`` in the places of these values (see
`values.encoding`), and its field `inputs` says where each one lies: a list of objects, in the order of the
numbers. A value lies in the output container, which agents may not read, so a signature for that one blob
rides with the task.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Final

from batchflow.protocol.fields import FieldError, sequence, table, text, whole
from batchflow.support.frozen import frozen

VALUES: Final = "values"
"""What an agent's heartbeat has among `accepts` when the agent fetches such values."""
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


def read_passed(inputs: Any) -> list[PassedValue]:
    """Read a task's field `inputs`. Raises `FieldError`."""
    found = []
    for each in sequence(inputs):
        fields = table(each)
        if missing := {"blob", "size", "sig"} - fields.keys():
            raise FieldError(f"an input without {min(missing)}")
        found.append(PassedValue(text(fields["blob"]), whole(fields["size"]), text(fields["sig"])))
    return found
