"""What `batchflow up` says of the cloud that it keeps."""

from __future__ import annotations

import asyncio

import pytest

from batchflow.cli.cloud_status import show
from batchflow.local.http.internal_errors import InternalErrors
from batchflow.settings import Settings


@pytest.mark.parametrize(("failures", "said"), [(0, ""), (1, "1 internal error,"), (2, "2 internal errors,")])
async def test_errors_of_the_cloud_itself_are_said(
    capsys: pytest.CaptureFixture[str], failures: int, said: str
) -> None:
    """How many there were, and where the last came up; nothing of none."""
    errors, stop = InternalErrors(), asyncio.Event()
    for number in range(failures):
        errors.note(f"request {number}", ZeroDivisionError())
    stop.set()
    await show(Settings(), stop, errors)
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) == bool(failures)
    if failures:
        assert f"request {failures - 1}: ZeroDivisionError" in told
