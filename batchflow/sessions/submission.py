"""What a task is submitted with: checked where it is written, made ready to travel."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any, Final, TypedDict, Unpack

from batchflow.errors import ConfigurationError
from batchflow.functions.command import FunctionCommand
from batchflow.model import UNSET
from batchflow.protocol import wire
from batchflow.protocol.wire import Reference, TaskItem
from batchflow.retry import RetryPolicy

INLINE: Final = 128 * 1024
"""Bytes of a task above which its arguments travel by reference."""
MOST_BESIDE: Final = 64 * 1024
"""Maximum number of bytes of all but the arguments, which cannot travel by reference."""


class TaskOptions(TypedDict, total=False):
    """What `run`, `map` and `submit_many` take beside the command: each as `Session.submit` has it."""

    task_id: str | None
    tag: Any
    timeout: float | None
    retry: RetryPolicy | None
    memory_limit: int | None
    stream_output: bool


@dataclass(slots=True, kw_only=True)
class Submission:
    """A task as its user wants it. Raises `ConfigurationError` for what can never be sent.

    It does not change once it is made. Like the items of `wire` it is not frozen, because that costs time.
    """

    command: str
    arguments: list[Any]
    task_id: str | None = None
    tag: Any = None
    timeout: float | None = None
    """Seconds of running time."""
    retry: RetryPolicy | None = None
    memory_limit: int | None = None
    """Bytes."""
    stream_output: bool = False
    function: FunctionCommand | None = None
    """What the command calls, if it is no file."""

    @classmethod
    def of(
        cls, command: str | FunctionCommand, arguments: list[Any], **options: Unpack[TaskOptions]
    ) -> Submission:
        """Make the submission of a file's or a function's call."""
        if isinstance(command, FunctionCommand):
            given = command.arguments(arguments)
            return cls(command=command.label, arguments=given, function=command, **options)
        return cls(command=command, arguments=arguments, **options)

    def __post_init__(self) -> None:
        command = self.command
        if not isinstance(command, str) or not command:
            raise ConfigurationError(
                f"the command is {command!r}; a function or the name of a file of the bundle is needed"
            )
        if self.timeout is not None and not is_duration(self.timeout):
            raise ConfigurationError(f"{command}: timeout is {self.timeout!r}; seconds above 0 are needed")
        if self.memory_limit is not None and not (type(self.memory_limit) is int and self.memory_limit > 0):
            raise ConfigurationError(
                f"{command}: memory_limit is {self.memory_limit!r}; a whole number of bytes is needed"
            )
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(f"{command}: retry is {self.retry!r}; a RetryPolicy is needed")

    def encode(
        self,
        *,
        client: str,
        job: str,
        task_id: str,
        uid: str,
        bundle: str,
        now: float,
        reference: Reference | None,
        pickle: str | None = None,
        timeout: float | None = None,
        share_processes: bool = False,
    ) -> bytes:
        """Return the task as it travels.

        `timeout`: in seconds, for a task submitted without one. `pickle`: the hash of the bundle of a
        function by value. `share_processes`: see `TaskItem`.
        Raises `ConfigurationError` when arguments or tag are not JSON.
        """
        item = TaskItem(
            client=client,
            job=job,
            task_id=task_id,
            command=self.command,
            params=self.arguments if reference is None else reference,
            uid=uid,
            bundle=bundle,
            submitted_at=now,
            tag=self.tag,
            timeout=timeout if self.timeout is None else self.timeout,
            memory_limit=self.memory_limit,
            retry=None if self.retry is None else self.retry.fields(),
            stream_output=self.stream_output,
            share_processes=share_processes,
            function=self.function is not None,
            pickle=pickle,
            keywords=self.function is not None and bool(self.function.keywords),
        )
        try:
            # a copy, because it is kept: the encoder's own buffer is of kilobytes, however short the task
            return bytes(memoryview(wire.encode(item)))
        except TypeError as error:
            raise ConfigurationError(f"{self.command}: arguments and tag must be JSON: {error}") from error

    def encode_arguments(self, size: int) -> bytes:
        """Encode what travels by reference; `size`: bytes of the whole task."""
        data = wire.dumps(self.arguments)
        if size - len(data) > MOST_BESIDE:
            raise ConfigurationError(
                f"{self.command}: tag and labels are {size - len(data)} bytes, at most {MOST_BESIDE} are "
                "allowed; pass what is large as an argument"
            )
        return data


def is_duration(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def command_line(params: tuple[Any, ...], args: Any, *, split: bool = True) -> list[Any]:
    """Return the arguments of a call. `split`: whether a lone text is a command line, as for a file.

    Raises `ConfigurationError` for both forms at once, or an unclosed quote.
    """
    if args is not UNSET:
        if params:
            raise ConfigurationError("submit takes either positional arguments or args=, not both")
        return as_arguments(args)
    if split and len(params) == 1 and isinstance(params[0], str):
        try:
            return [*shlex.split(params[0])]
        except ValueError as error:
            raise ConfigurationError(
                f"the command line {params[0]!r} cannot be split: {error}; pass args=[...] for text as it is"
            ) from error
    return list(params)


def as_arguments(value: Any) -> list[Any]:
    """Return the arguments for an input: a list or tuple as it is, anything else as the one argument."""
    return list(value) if isinstance(value, list | tuple) else [value]
