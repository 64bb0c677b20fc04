"""The parts of a session that a test has open.

Tests of a whole session look at its parts through this function alone. A test of a single part makes it from
a `SessionContext`.
"""

from __future__ import annotations

from batchflow.session import Session
from batchflow.sessions.parts import SessionParts


def parts_of(session: Session) -> SessionParts:
    """Return the parts that the session runs on."""
    return session._parts
