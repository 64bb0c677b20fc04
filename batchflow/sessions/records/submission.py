"""What a task is submitted with: checked where it is written, made ready to travel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Unpack, cast

from batchflow.errors import ConfigurationError
from batchflow.functions.command import FunctionCommand
from batchflow.protocol import wire
from batchflow.protocol.lanes import check_priority
from batchflow.protocol.needs import Needs
from batchflow.protocol.values import arguments
from batchflow.protocol.values.encoding import is_finite, to_json
from batchflow.protocol.wire import Reference, TaskItem
from batchflow.retry import RetryPolicy
from batchflow.sessions.records.task_options import TaskOptions
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchflow.protocol.lanes import Priority
    from batchflow.protocol.passed import PassedFile, PassedValue
    from batchflow.protocol.values.classes import BundleClasses
    from batchflow.protocol.values.encoding import Encoded
    from batchflow.sessions.records.tracker import Entry

INLINE: Final = 128 * 1024
"""Bytes of a task above which its arguments travel by reference."""
MOST_BESIDE: Final = 64 * 1024
"""Maximum number of bytes of all but the arguments, which cannot travel by reference."""


_REPEATED: Final = ("timeout", "retry", "memory_limit", "stream_output", "requires", "priority", "tag")
"""The options that a repetition of a task has as well."""


@frozen
class TaskInput:
    """What a task takes of another one: its value, or a file that it left."""

    entry: Entry
    file: str | None = None
    """Its name; None: the value."""


class InputMarks(Protocol):
    """Numbers the tasks among arguments; see `arguments.encode`."""

    @property
    def inputs(self) -> list[TaskInput]: ...

    def __call__(self, value: Any, /) -> int | None: ...


@dataclass(slots=True, kw_only=True)
class Submission:
    """A task as its user wants it. Raises `ConfigurationError` for what can never be sent.

    It changes only when its arguments are encoded. Like the items of `wire` it is not frozen, because that
    costs time.
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
    encoded: Encoded | bytes | None = None
    """The arguments as they travel: a container, or JSON. None while they are texts and whole numbers."""
    function: FunctionCommand | None = None
    """What the command calls, if it is no file."""
    after: Any = ()
    """The tasks that end before it begins."""
    on_failure: Literal["pass"] | None = None
    """`"pass"`: it also begins when a task that it waits for failed, and gets the failed `Result`."""
    expires: float | timedelta | None = None
    """Seconds from the submit; what has not begun by then never does. None: without a limit."""
    priority: Priority | None = None
    """Where it stands among the tasks of the pool; None: where its session does."""
    requires: Mapping[str, Any] | None = None
    """What it requires of its node, as it travels; None: one slot of any."""
    inputs: tuple[TaskInput, ...] = ()
    """The tasks whose values or files stand in the arguments, in the order of their numbers there."""
    passed: Sequence[PassedValue] = ()
    """The values that the agent fetches, in the order of their numbers."""
    files: Sequence[PassedFile] = ()
    """The files that the agent brings, in the order of their folders."""
    places: str | None = None
    """The blob that says where these values and files lie; None: the task itself does."""

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
        if self.on_failure not in (None, "pass"):
            raise ConfigurationError(
                f"{command}: on_failure is {self.on_failure!r}; None or 'pass' is needed"
            )
        if self.expires is not None:
            seconds = self.expires.total_seconds() if isinstance(self.expires, timedelta) else self.expires
            if not is_duration(seconds):
                raise ConfigurationError(
                    f"{command}: expires is {self.expires!r}; seconds above 0, or a timedelta, are needed"
                )
            self.expires = seconds
        if self.priority is not None:
            try:
                check_priority(self.priority)
            except ConfigurationError as error:
                raise ConfigurationError(f"{command}: {error}") from None
        if self.requires is not None:
            try:
                self.requires = Needs.read(self.requires).fields() or None
            except ValueError as error:
                raise ConfigurationError(f"{command}: requires: {error}") from None

    def options(self) -> TaskOptions | None:
        """Return what a repetition of the task has beside command and arguments; None: nothing.

        When a task expires, and what it waits for, is of one submission alone.
        """
        usual = self.timeout is None and self.retry is None and self.memory_limit is None
        if usual and self.requires is None and self.priority is None and self.tag is None:
            return {"stream_output": True} if self.stream_output else None
        given = ((name, getattr(self, name)) for name in _REPEATED)
        return cast("TaskOptions", {name: value for name, value in given if value is not None})

    def begin_by(self, now: float) -> float | None:
        """Return when it expires if it is submitted now; None: never."""
        return None if self.expires is None else now + cast("float", self.expires)

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
        environment: str | None = None,
        variables: str | None = None,
        timeout: float | None = None,
        share_processes: bool = False,
        unpickle: bool = False,
        budget: Mapping[str, Any] | None = None,
        trace: str | None = None,
    ) -> bytes | None:
        """Return the task as it travels; None when its arguments need a `prepare`.

        `timeout`: in seconds, for a task submitted without one. `pickle`: the hash of the bundle of a
        function by value. `environment`, `variables`, `share_processes`: see `TaskItem`. `unpickle`: whether
        the session opens pickles. Raises `ConfigurationError` when the tag is not JSON.
        """
        params: Any = self.arguments
        if reference is not None:
            params = reference
        elif self.encoded is not None:
            params = arguments.in_message(self.encoded)
        item = TaskItem(
            client=client,
            job=job,
            task_id=task_id,
            command=self.command,
            params=params,
            uid=uid,
            bundle=bundle,
            submitted_at=now,
            tag=self.tag,
            timeout=timeout if self.timeout is None else self.timeout,
            memory_limit=self.memory_limit,
            retry=None if self.retry is None else self.retry.fields(),
            stream_output=self.stream_output,
            share_processes=share_processes,
            execution_folders=True,
            function=self.function is not None,
            pickle=pickle,
            environment=environment,
            variables=variables,
            keywords=self.function is not None and bool(self.function.keywords),
            pickles=unpickle,
            budget=budget,
            trace=trace,
            requires=self.requires,
            inputs=([each.fields() for each in self.passed] or None) if self.places is None else None,
            files=([each.fields() for each in self.files] or None) if self.places is None else None,
            places=self.places,
        )
        try:
            data = wire.encode(item)
        except TypeError as error:
            if self.encoded is None and to_json(self.arguments) is None:
                return None
            raise ConfigurationError(f"{self.command}: the tag must be JSON: {error}") from error
        if self.tag is not None and not is_finite(self.tag):
            raise ConfigurationError(f"{self.command}: the tag must be JSON: it has NaN or infinity")
        # a copy, because it is kept: the encoder's own buffer is of kilobytes, however short the task
        return bytes(memoryview(data))

    def prepare(
        self, classes: BundleClasses, *, index: int | None = None, marks: InputMarks | None = None
    ) -> None:
        """Encode the arguments. `index`: the place among several inputs.

        `marks`: finds the tasks among them. Raises `ArgumentNotSerializable`, `InvalidDependency`.
        """
        function = self.function
        if function is not None:
            classes.add_modules(function.modules)
        is_python = function is not None or self.command.endswith(".py")
        self.encoded = arguments.encode(
            self.arguments, self.command, classes, index, is_python=is_python, mark=marks
        )
        if marks is not None:
            self.inputs = tuple(marks.inputs)


def repeatable(options: TaskOptions) -> TaskOptions:
    """Return options for several tasks: an iterator of tasks in `after` is read once."""
    after = options.get("after", ())
    return options | {"after": tuple(after)} if isinstance(after, Iterator) else options


def is_duration(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
