"""Text of tasks and services, made safe to show."""

from __future__ import annotations

import json
import sys

from batchflow.errors import ServiceError, TaskFailed
from batchflow.model import Cause, Explanation, Result, Status
from batchflow.printable import printable, printable_json

EVERY = "".join(map(chr, range(sys.maxunicode + 1)))
HOSTILE = "\x1b[2J"


def test_control_characters_become_visible() -> None:
    """Only line ends and tabs of them stay; all other text does."""
    assert printable("a\x1b[31m\x9b\x7f\r\u202eb\tc\r\nd\n") == "a\\x1b[31m\\x9b\\x7f\\x0d\\u202eb\tc\nd\n"
    kept = [char for char in EVERY if printable(char) == char]
    assert len(EVERY) - len(kept) == 65 - 2 + 9
    assert printable("naïve – 漢字 \u200f🙂") == "naïve – 漢字 \u200f🙂"


def test_json_keeps_its_value() -> None:
    """Escapes of JSON say the same."""
    text = printable_json(json.dumps(EVERY, ensure_ascii=False))
    assert json.loads(text) == EVERY
    assert printable(text) == text


def test_errors_and_explanations_are_printable() -> None:
    """Their texts are printed by tracebacks and by `print`; what they are made of stays as it is."""
    result = Result("1", "j", "c", HOSTILE, Status.FAILED, 0, error=HOSTILE, traceback=HOSTILE)
    explanation = Explanation(HOSTILE, (Cause(HOSTILE, HOSTILE),))
    for shown in (TaskFailed(result), ServiceError(HOSTILE), explanation):
        assert "\x1b" not in str(shown)
        assert "\\x1b[2J" in str(shown)
    assert result.error == HOSTILE
