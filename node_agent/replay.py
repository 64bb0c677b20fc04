"""One task in the foreground, as its node ran it: what `batchflow replay` starts.

`python -m node_agent.replay FOLDER`: the folder has `task.json`, `arguments` and `files`. The task gets the
engine that it has on a node. Nothing is limited, and what it prints goes where this process prints. Its value
goes to stdout, everything else to stderr. Exit code 0 for a success, 1 for a failure.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import pprint
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.protocol.values.encoding import is_container
from batchflow.protocol.values.json_form import json_form
from batchflow.protocol.values.misfits import Undecodable
from node_agent.bundles import environments
from node_agent.child import runner, task_values
from node_agent.child.engine import TaskEngine
from node_agent.child.modules import Modules
from node_agent.control.heartbeat import host_name
from node_agent.execution import commands

if TYPE_CHECKING:
    import pdb
    from collections.abc import Callable


class ForegroundLine:
    """Does on the spot what an agent does for an engine."""

    def cancelled(self) -> bool:
        return False

    def note(self, kind: str, message: str, data: Any) -> None:
        _say(f"{kind}: {message}")

    def run(self, command: list[str]) -> dict[str, Any]:
        return runner.run(command)

    async def run_async(self, command: list[str]) -> dict[str, Any]:
        return await asyncio.to_thread(runner.run, command)


def main() -> int:
    folder = Path(sys.argv[1])
    sys.argv[1:] = []
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    directory = folder / "files"
    (directory / "outputs").mkdir(exist_ok=True)
    os.chdir(directory)
    data = (folder / "arguments").read_bytes()
    if task["function"] is None and not task["command"].endswith(".py"):
        return _run_program(task, directory, data)
    return _run_python(task, folder, directory, data)


def _run_program(task: dict[str, Any], directory: Path, data: bytes) -> int:
    arguments = data if is_container(data) else json.loads(data)
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    bundle = Bundle.of(BundleFile(name, "0" * 64, 0) for name in names)
    found = commands.resolve(task["command"], arguments, bundle, directory, directory)
    if isinstance(found, commands.Refusal):
        _say(found.reason)
        return 1
    assert isinstance(found, commands.RunProgram)
    began = time.monotonic()
    code = subprocess.run(found.argv, check=False).returncode
    _say(f"ended with exit code {code} after {time.monotonic() - began:.2f} s")
    return int(code != 0)


def _run_python(task: dict[str, Any], folder: Path, directory: Path, data: bytes) -> int:
    modules = Modules()
    if task["environment"] is not None:
        place, hashes = task["environment"]
        packages = folder / "packages"
        environments.install(hashes, Path(place), packages)
        modules.add_packages(str(packages))
    modules.use("replay", str(directory))
    engine = TaskEngine(
        ForegroundLine(),
        task_id=task["task_id"],
        job_id=task["job"],
        client=task["client"],
        attempt=task["attempt"],
        node=host_name(),
        working_dir=str(directory),
    )
    debugger = _debugger() if task["pdb"] else None
    began = time.monotonic()
    try:
        call = _call_of(task, modules, engine, data, debugger)
        returned = call() if debugger is None else debugger.runcall(call)
        value, error = _split(returned) if task["function"] is None else (returned, None)
    except Undecodable as problem:
        _say(f"its arguments cannot be opened here: {problem}")
        return 1
    except BaseException as problem:
        return _failed(task, problem, began, debugger)
    if error is not None:
        _say(f"failed after {time.monotonic() - began:.2f} s: {error}")
        return 1
    _say(f"succeeded after {time.monotonic() - began:.2f} s")
    if task["json"]:
        _print_line(json.dumps({"status": "succeeded", "value": json_form(value, otherwise=repr)}))
    else:
        _print_line(pprint.pformat(value))
    return 0


def _call_of(
    task: dict[str, Any], modules: Modules, engine: TaskEngine, data: bytes, debugger: pdb.Pdb | None
) -> Callable[[], Any]:
    """Return what runs the task to its end. Raises what its module raises when it is imported."""
    function = task["function"]
    if function is None:
        action = modules.action(task["command"])
    else:
        action = modules.function(task["command"], function["pickle"])
    args = task_values.open_arguments(data) if is_container(data) else json.loads(data)
    importlib.import_module("batchflow.engine").enter(engine)
    if debugger is not None:
        _stop_at_first_line(debugger, action)

    def call() -> Any:
        if function is None:
            returned = action(engine, args)
        else:
            keywords = args.pop() if function["keywords"] else {}
            returned = action(*args, **keywords)
        return asyncio.run(_completed(returned)) if hasattr(type(returned), "__await__") else returned

    return call


async def _completed(awaitable: Any) -> Any:
    return await awaitable


def _split(returned: Any) -> tuple[Any, str | None]:
    """Return the value and the error of what a `do_action` returned."""
    is_pair = type(returned) is tuple and len(returned) == 2 and isinstance(returned[1], str | None)
    if not is_pair:
        return returned, None
    value, error = returned
    return (value, None) if error in (None, "", "no error") else (value, error)


def _failed(task: dict[str, Any], problem: BaseException, began: float, debugger: pdb.Pdb | None) -> int:
    if debugger is not None and type(problem).__name__ == "BdbQuit":
        _say("left by the debugger")
        return 1
    own = str(Path(__file__).parent) + os.sep
    trace = problem.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename, own):
        trace = trace.tb_next
    sys.stderr.write("".join(traceback.format_exception(problem.with_traceback(trace))))
    _say(f"failed after {time.monotonic() - began:.2f} s")
    if task["json"]:
        _print_line(json.dumps({"status": "failed", "error": f"{type(problem).__name__}: {problem}"}))
    if debugger is not None and trace is not None:
        import pdb

        pdb.post_mortem(trace)
    return 1


def _is_ours(name: str, own: str) -> bool:
    library = os.path.dirname(asyncio.__file__) + os.sep
    return name.startswith((own, "<frozen ", library)) or name.endswith(("/bdb.py", "/pdb.py"))


def _debugger() -> pdb.Pdb:
    import pdb

    return pdb.Pdb()


def _stop_at_first_line(debugger: pdb.Pdb, action: Any) -> None:
    """Have the debugger go on from our code to the first line of the task's, which may run in a coroutine."""
    code = getattr(inspect.unwrap(action), "__code__", None)
    if code is None:
        return
    lines = [line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno]
    if lines:
        debugger.rcLines.extend([f"tbreak {code.co_filename}:{min(lines)}", "continue"])


def _print_line(text: str) -> None:
    """Write to stdout, after what the task printed."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"batchflow: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
