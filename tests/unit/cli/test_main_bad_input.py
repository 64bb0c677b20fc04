"""What is wrong is told in one message on stderr, with the right exit code, before anything is done."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.support.command_line import Cli, Inside


@dataclass(frozen=True)
class Wrong:
    """A command that cannot be carried out, and what it has to say about that."""

    name: str
    arguments: tuple[str, ...]
    code: int
    said: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)


ON_THE_CLOUD = [
    Wrong(
        "no such pool", ("run", "--pool", "demmo", "square.py", "1"), 3, ("'demmo'", "did you mean 'demo'?")
    ),
    Wrong("show no such pool", ("pool", "show", "nowhere"), 3, ("there is no pool 'nowhere'",)),
    Wrong("pool exists", ("pool", "create", "demo"), 5, ("'demo' already", "batchflow pool ensure demo")),
    Wrong("pool files missing", ("pool", "create", "x1", "--file", "gone/"), 2, ("'gone'", "no such file")),
    Wrong("no such job", ("job", "show", "nothing"), 3, ("no job 'nothing'",)),
    Wrong("no such node", ("logs", "zz"), 3, ("there is no node 'zz'",)),
    Wrong("no such command", ("run", "squared.py", "1"), 2, ("squared.py", "did you mean 'square.py'?")),
    Wrong("delete what", ("pool", "delete"), 2, ("--all",)),
    Wrong("delete unasked", ("pool", "delete", "--all"), 2, ("demo", "--yes")),
    Wrong(
        "CSV with a broken line",
        ("run", "square.py", "--csv", "in.csv"),
        2,
        ("in.csv:3: 1 column, 2 are expected",),
        {"in.csv": "a,b\n1,2\n3\n"},
    ),
    Wrong(
        "CSV with an open quote",
        ("run", "square.py", "--csv", "in.csv"),
        2,
        ("in.csv:2: not CSV",),
        {"in.csv": 'a,b\n1,"2\n'},
    ),
    Wrong(
        "no CSV",
        ("run", "square.py", "--csv", "gone.csv"),
        2,
        ("gone.csv: cannot be read: No such file",),
    ),
    Wrong(
        "CSV without inputs", ("run", "square.py", "--csv", "in.csv"), 2, ("no inputs",), {"in.csv": "a\n"}
    ),
    Wrong(
        "JSON lines with a broken one",
        ("run", "square.py", "--jsonl", "in.jsonl"),
        2,
        ("in.jsonl:2: not JSON",),
        {"in.jsonl": "1\n{\n"},
    ),
    Wrong(
        "a manifest that names a missing file",
        ("run", "--manifest", "task.json"),
        2,
        ("task.json", "gone.py"),
        {"task.json": '{"JOB_MANIFEST": [{"TASK_MODULE": "gone.py", "TASK_INPUT": "1"}]}'},
    ),
    Wrong(
        "a manifest that names a missing jar",
        ("run", "--manifest", "task.json"),
        2,
        ("task.json", "pi.jar"),
        {
            "a.py": "",
            "task.json": '{"JOB_MANIFEST": [{"TASK_MODULE": "a.py", "TASK_INPUT": "java -jar pi.jar 1"}]}',
        },
    ),
    Wrong(
        "a manifest with a misspelt key",
        ("run", "--manifest", "task.json"),
        2,
        ("'TASK_MODUL'", "did you mean 'TASK_MODULES'?"),
        {"task.json": '{"JOB_MANIFEST": [], "TASK_MODUL": []}'},
    ),
    Wrong(
        "a manifest that is no JSON",
        ("run", "--manifest", "task.json"),
        2,
        ("task.json: not JSON",),
        {"task.json": "{"},
    ),
    Wrong("two sources of inputs", ("run", "square.py", "1", "--jsonl", "x"), 2, ("from one",)),
    Wrong("no command", ("run",), 2, ("COMMAND",)),
    Wrong("an unknown option", ("run", "square.py", "--colour"), 2, ("--colour",)),
    Wrong("an unknown command", ("rum",), 2, ("no command 'rum'", "did you mean 'run'?")),
    Wrong("a bad name", ("run", "--session", "a b", "square.py"), 2, ("run name 'a b'",)),
    Wrong("no such run", ("run", "--resume", "never"), 3, ("no run 'never'",)),
    Wrong("results of no run", ("results",), 3, ("no run",)),
    Wrong("output in no folder", ("run", "square.py", "1", "-o", "no/such/file"), 74, ("no/such/file",)),
    Wrong("two clouds", ("up",), 5, ("up already",)),
]

CONFIGURED = [
    Wrong("no configuration", ("pool", "list"), 2, ("batchflow up", "batchflow init")),
    Wrong(
        "no such file",
        ("pool", "list", "--config", "gone.toml"),
        2,
        ("gone.toml: cannot be read: No such file",),
    ),
    Wrong("not TOML", ("pool", "list"), 2, ("batchflow.toml: not TOML",), {"batchflow.toml": "[batch\n"}),
    Wrong(
        "an unknown key",
        ("pool", "list"),
        2,
        ("unknown key pool.node", "did you mean 'nodes'?"),
        {"batchflow.toml": "[pool]\nnode = 1\n"},
    ),
    Wrong(
        "a wrong type",
        ("pool", "list"),
        2,
        ("pool.nodes must be a whole number",),
        {"batchflow.toml": '[pool]\nnodes = "2"\n'},
    ),
    Wrong(
        "an unknown profile",
        ("pool", "list", "--profile", "bgi"),
        2,
        ("no profile 'bgi'", "big", "did you mean 'big'?"),
        {"batchflow.toml": "[profiles.big.pool]\nnodes = 9\n"},
    ),
    Wrong("no local cloud", ("pool", "list", "--profile", "local"), 2, ("no local cloud is up",)),
    Wrong(
        "an unknown key of a pool",
        ("pool", "ensure"),
        2,
        ("unknown key pools.a.vm_sise", "did you mean 'vm_size'?"),
        {"batchflow.toml": '[pools.a]\nvm_sise = "x"\n'},
    ),
    Wrong(
        "what no pool can be",
        ("pool", "ensure"),
        2,
        ("batchflow.toml", "pool 'a'", "nodes"),
        {"batchflow.toml": "[pools.a]\nnodes = -1\n"},
    ),
    Wrong(
        "missing settings",
        ("pool", "list"),
        2,
        ("batchflow.toml: not set:", "storage.connection_string"),
        {"batchflow.toml": '[batch]\naccount = "a"\n'},
    ),
    Wrong(
        "an unreachable account",
        ("pool", "list"),
        4,
        ("127.0.0.1:9", "storage.connection_string"),
        {
            "batchflow.toml": '[batch]\naccount = "a"\nkey = "c2VjcmV0"\nurl = "http://127.0.0.1:9"\n'
            '[storage]\nconnection_string = "DefaultEndpointsProtocol=http;AccountName=a;'
            'AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:9/a"\n'
            '[servicebus]\nconnection_string = "Endpoint=sb://127.0.0.1:9/;SharedAccessKeyName=n;'
            'SharedAccessKey=c2VjcmV0"\n'
        },
    ),
    Wrong("nothing to convert", ("init", "--from", "."), 2, ("credentials.json", "batch.json")),
    Wrong("init over a file", ("init", "--no-try"), 5, ("--force",), {"batchflow.toml": "# mine\n"}),
    Wrong("a local task that is not there", ("run", "--local", "gone.py"), 2, ("gone.py: no such file",)),
]


def check(cli: Cli, wrong: Wrong, inside: Inside) -> None:
    for name, text in wrong.files.items():
        cli.write(name, text)
    ended = inside(cli, *wrong.arguments)
    assert ended.returncode == wrong.code, ended.stderr
    assert ended.stdout == ""
    for words in wrong.said:
        assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "c2VjcmV0" not in ended.stderr
    assert not list(cli.folder.glob("state/batchflow/runs/*/run.json"))


@pytest.mark.parametrize("wrong", [pytest.param(each, id=each.name) for each in ON_THE_CLOUD])
def test_refused_input_exits_with_its_code(cli: Cli, wrong: Wrong, inside: Inside) -> None:
    """A pool, a job, a node, a run that is not there; an input that is malformed."""
    check(cli, wrong, inside)


@pytest.mark.parametrize("wrong", [pytest.param(each, id=each.name) for each in CONFIGURED])
def test_wrong_configuration_exits_with_its_code(alone: Cli, wrong: Wrong, inside: Inside) -> None:
    """A file that is missing, malformed, incomplete, or that leads nowhere."""
    check(alone, wrong, inside)


def test_a_process_of_its_own_ends_with_the_code(alone: Cli) -> None:
    """What is checked above inside the tests' process is what a shell sees."""
    check(alone, CONFIGURED[0], lambda cli, *arguments: cli(*arguments))


def test_debug_shows_the_traceback(alone: Cli) -> None:
    """`--debug` shows where an error came from, before or after the command."""
    for arguments in (("--debug", "pool", "list"), ("pool", "list", "--debug")):
        assert "Traceback" in alone(*arguments).stderr
