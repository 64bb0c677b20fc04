"""A Batch account without sockets or processes, whose clock a test moves: nodes boot and leave at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson

from batchflow.local.batch.core.actions import Allocate, Boot, Remove, RunTask
from batchflow.local.batch.core.entities import Outcome
from batchflow.local.batch.core.state import BatchState
from batchflow.local.batch.nodes.directories import NodeDirectories
from batchflow.local.batch.routes import BatchRequest, BatchResponse, DataPlane, split_path

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.local.batch.core.samples import AutoscaleTiming

START = 1_700_000_000.0


class Plane:
    """The data plane and its state; `now` is the account's clock."""

    def __init__(self, root: Path, timing: AutoscaleTiming | None = None) -> None:
        self.now = START
        self._runs: list[int] = []
        self.errors: list[str] = []
        self.state = BatchState("local", self.errors.append, timing)
        self._plane = DataPlane(self.state, NodeDirectories(root), lambda: "http://local")

    def ask(self, method: str, target: str, body: Any = None) -> BatchResponse:
        """Carry out a request, and what follows from it. Raises Refused."""
        path, _, query = target.partition("?")
        request = BatchRequest(
            method=method,
            names=split_path(path.strip("/").split("/")),
            query={"api-version": "2024-07-01.20.0", **dict(parse_qsl(query))},
            headers={},
            body=None if body is None else orjson.loads(orjson.dumps(body)),
            now=self.now,
        )
        answer = self._plane.answer(request)
        self.settle()
        return answer

    def settle(self) -> None:
        """Let nodes boot and leave; tasks that were begun go on."""
        while actions := self.state.take_actions(self.now):
            for action in actions:
                match action:
                    case Allocate(node):
                        self.state.pools.node_allocated(node, self.now)
                    case Boot(node, boot, _):
                        self.state.nodes.booted(node, boot, self.now)
                    case Remove(node):
                        self.state.pools.node_removed(node, self.now)
                    case RunTask(run):
                        self._runs.append(run.id)
                        self.state.run_launched(run.id, self.now)

    def end_runs(self) -> None:
        """Let all tasks that run end well."""
        runs, self._runs = self._runs, []
        for run in runs:
            self.state.run_ended(run, Outcome(0, None), self.now)
        self.settle()

    def advance(self, seconds: float) -> None:
        """Move the clock, from deadline to deadline."""
        end = self.now + seconds
        while (deadline := self.state.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.state.tick(self.now)
            self.settle()
        self.now = end
