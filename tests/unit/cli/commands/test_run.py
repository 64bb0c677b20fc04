"""A command over many inputs: from wherever they are written, now or later, here or on a cloud of its own."""

from __future__ import annotations

import json
import subprocess

from tests.support.command_line import PATIENCE, PROGRAM, Cli, parsed
from tests.support.wheels import make_wheel, requirements_file


def test_inputs_of_the_command_line(cli: Cli) -> None:
    """`--input 1 2 3` and `1 2 3` are the same; what is JSON is read as JSON, the rest is text."""
    assert [
        row["value"] for row in cli.rows("run", "--pool", "demo", "square.py", "--input", "1", "2", "3")
    ] == [
        1,
        4,
        9,
    ]
    rows = cli.rows("run", "echo.py", "x y", "[1, 2]", "true", "--", "-1")
    assert [row["value"] for row in rows] == [["x y"], [1, 2], [True], [-1]]
    assert [row["arguments"] for row in rows] == [["x y"], [1, 2], [True], [-1]]


def test_inputs_that_are_text(cli: Cli) -> None:
    """With --text nothing is read as JSON."""
    assert [row["value"] for row in cli.rows("run", "echo.py", "--text", "1", "null")] == [["1"], ["null"]]


def test_no_input_is_one_task_without_arguments(cli: Cli) -> None:
    """`run echo.py` runs it once."""
    assert [row["value"] for row in cli.rows("run", "echo.py")] == [[]]


def test_inputs_of_a_csv_file(cli: Cli) -> None:
    """A row is an object by the header's names, or without a header the list of its cells."""
    cli.write("in.csv", 'name,size\nä,1\n"b, c",\n')
    rows = cli.rows("run", "echo.py", "--csv", "in.csv")
    assert [row["value"] for row in rows] == [[{"name": "ä", "size": 1}], [{"name": "b, c", "size": ""}]]
    cli.write("plain.csv", "1,2\n")
    assert cli.rows("run", "echo.py", "--csv", "plain.csv", "--no-header")[0]["value"] == [1, 2]


def test_inputs_of_standard_input(cli: Cli) -> None:
    """JSON lines from a pipe."""
    ended = cli("run", "echo.py", "--jsonl", "-", text='{"a": 1}\n\n[2, 3]\n')
    assert [row["value"] for row in parsed(ended.stdout)] == [[{"a": 1}], [2, 3]]


def test_a_manifest_of_the_original(cli: Cli) -> None:
    """Each task has its own module, and its input is split as a shell would; the files come along."""
    cli.write("jobs/one.py", "def do_action(engine, args):\n    return args, 'no error'\n")
    tasks = [
        {"TASK_MODULE": "one.py", "TASK_INPUT": "java -Xmx1g 'a b'"},
        {"TASK_MODULE": "one.py", "TASK_INPUT": "10.0 11"},
    ]
    document = {
        "TASK_MODULES": ["one.py"],
        "TASK_MODULES_DIRECTORY": "",
        "TASK_ARGS": "",
        "TASK_OUTPUT_CONTAINER": "out",
        "JOB_MANIFEST": tasks,
    }
    cli.write("jobs/task.json", json.dumps(document))
    rows = cli.rows("run", "--manifest", "jobs/task.json")
    assert [row["value"] for row in rows] == [["java", "-Xmx1g", "a b"], ["10.0", "11"]]


def test_a_task_that_fails(cli: Cli) -> None:
    """Its result says how; the others are not touched; the exit code is 1."""
    rows = cli.rows("run", "square.py", "2", "x", code=1)
    assert rows[0]["value"] == 4
    assert rows[1]["status"] == "failed"
    assert rows[1]["kind"] == "TaskFailed"
    assert rows[1]["error"].startswith("TypeError")
    assert "square.py" in rows[1]["traceback"]


def test_a_task_that_succeeds_at_the_second_attempt(cli: Cli) -> None:
    """`--retries` gives it one."""
    rows = cli.rows("run", "flaky.py", str(cli.folder / "mark"), "--retries", "1")
    assert (rows[0]["value"], rows[0]["attempt"]) == ("second", 2)


def test_a_task_that_takes_too_long(cli: Cli) -> None:
    """`--timeout` ends it."""
    assert cli.rows("run", "nap.py", "60", "--timeout", "0.5", code=1)[0]["kind"] == "TaskTimeout"


def test_a_file_of_ones_own(cli: Cli) -> None:
    """What the pool does not have and is here goes along; --file names more."""
    cli.write("mine/own.py", "import helper\ndef do_action(engine, args):\n    return helper.WORD\n")
    cli.write("mine/helper.py", "WORD = 'here'\n")
    assert cli.rows("run", "own.py", "--file", "mine/")[0]["value"] == "here"
    cli.write("single.py", "def do_action(engine, args):\n    return 'alone'\n")
    ended = cli("run", "single.py")
    assert parsed(ended.stdout)[0]["value"] == "alone"
    assert "single.py goes along" in ended.stderr


def test_text_of_any_kind(cli: Cli) -> None:
    """Output is UTF-8, whatever the locale is."""
    ended = cli("run", "echo.py", '"ä→"', env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0, ended.stderr
    assert parsed(ended.stdout)[0]["value"] == ["ä→"]


def test_a_run_with_packages_of_its_own(cli: Cli) -> None:
    """What is built is told; the run remembers the file, wherever it is resumed."""
    make_wheel(cli.folder, "tiny_u", "1.0", "VALUE = 7\n")
    requirements_file(cli.folder, "tiny_u")
    cli.write("tiny.py", "import tiny_u\ndef do_action(engine, args): return tiny_u.VALUE\n")
    ended = cli("run", "tiny.py", "--requirements", "requirements.txt", "--session", "packed", "1")
    assert [row["value"] for row in parsed(ended.stdout)] == [7], ended.stderr
    assert "building an environment: tiny-u" in ended.stderr


def test_results_into_a_file(cli: Cli) -> None:
    """With --output nothing is on stdout."""
    ended = cli("run", "square.py", "5", "6", "--output", "out.jsonl")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert [row["value"] for row in parsed((cli.folder / "out.jsonl").read_text())] == [25, 36]


def test_report_of_a_run(cli: Cli) -> None:
    """It is a page; a file that cannot be written is refused before anything runs."""
    ended = cli("run", "square.py", "5", "6", "--report", "run.html")
    assert ended.returncode == 0, ended.stderr
    assert "report: run.html" in ended.stderr
    assert "2 tasks ran on" in (cli.folder / "run.html").read_text()
    refused = cli("run", "square.py", "5", "--report", "nowhere/run.html")
    assert (refused.returncode, refused.stdout) == (74, "")
    assert "cannot write nowhere/run.html: No such file or directory" in refused.stderr


def test_inputs_that_failed_are_named_and_run_again(cli: Cli) -> None:
    """`runs` lists both runs; the results are a table, now and later."""
    cli.write("in.csv", "path;number\nhere;1\n/;x\n/;2\n")
    failing = "def do_action(engine, args):\n    return 1 // (args[0]['number'] - 1)\n"
    cli.write("divide.py", failing)
    ended = cli("run", "divide.py", "--csv", "in.csv", "--session", "first", "-o", "first.csv")
    assert ended.returncode == 1
    assert "in.csv: a semicolon separates its columns" in ended.stderr
    assert "1 succeeded, 2 failed\nfailed: inputs 0, 1\nwhy: batchflow logs 0 --run first\n" in ended.stderr
    assert "once more: batchflow run --failed-of first\n" in ended.stderr
    head, *rows = (cli.folder / "first.csv").read_text().splitlines()
    assert head.startswith("index,command,path,number,status,value,error")
    assert sorted(rows)[2].startswith("2,divide.py,/,2,succeeded,1,")
    cli.write("divide.py", failing.replace("[0]['number'] - 1)", "[0] is None or 1)"))
    again = cli("run", "--failed-of", "first", "--session", "second")
    assert again.returncode == 0, again.stderr
    assert "2 inputs of 3 of run 'first', once more" in again.stderr
    assert [row["arguments"][0]["number"] for row in parsed(again.stdout)] == [1, "x"]
    nothing = cli("run", "--failed-of", "second")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    second, first = json.loads(cli("runs", "--json").stdout)
    assert (second["run"], second["pool"], second["succeeded"], second["to_come"]) == ("second", "demo", 2, 0)
    assert (first["run"], first["failed"], first["commands"]) == ("first", 2, ["divide.py"])
    assert cli("results", "first", "--output", "again.csv").stdout == ""
    assert (cli.folder / "again.csv").read_text() == (cli.folder / "first.csv").read_text()


def test_names_of_pools_and_jobs_are_completed(cli: Cli) -> None:
    """As the services have them. They have five seconds to answer, which may be too short at first."""
    assert cli("run", "square.py", "1").returncode == 0  # so that there is a job
    for words, completed in (("run --pool d", "plain,demo\n"), ("job show def", "plain,default\n")):
        line = {"COMP_WORDS": f"batchflow {words}", "COMP_CWORD": str(len(words.split()))}
        answers = (cli(env={"_BATCHFLOW_COMPLETE": "bash_complete", **line}).stdout for _ in range(5))
        assert completed in answers


def test_a_run_that_is_described_in_the_file(cli: Cli) -> None:
    """`--job NAME` takes command, files and limits from `[jobs.NAME]`."""
    cli.write("tasks/word.py", "def do_action(engine, args):\n    return 'described'\n")
    cli.write(
        "batchflow.toml",
        'target = "local"\n[jobs.words]\npool = "demo"\ncommand = "word.py"\nfiles = ["tasks/"]\n',
    )
    assert cli.rows("run", "--job", "words")[0]["value"] == "described"
    assert "words" in [
        row["job"] for row in json.loads(cli("job", "list", "--pool", "demo", "--json").stdout)
    ]


def test_submitted_now_and_read_later(cli: Cli) -> None:
    """`submit` prints the run's name; `results` prints what has come, and again, and waits with --follow."""
    submitted = cli("submit", "square.py", "7", "8")
    assert submitted.returncode == 0, submitted.stderr
    name = submitted.stdout.strip()
    assert [row["value"] for row in cli.rows("results", name, "--follow")] == [49, 64]
    assert [row["value"] for row in cli.rows("results")] == [49, 64]
    document = json.loads(cli("submit", "square.py", "9", "--session", "later", "--json").stdout)
    assert document == {"run": "later", "pool": "demo", "job": "default", "tasks": 1}


def test_logs_show_the_output_of_a_task(cli: Cli) -> None:
    """`logs N` of the latest run; while it runs, --stream shows it on stderr."""
    ended = cli("run", "talk.py", "hello", "world", "--stream")
    assert "[0] hello" in ended.stderr
    said = cli("logs", "1")
    assert (said.returncode, said.stdout) == (0, "world\n")
    assert cli("logs", "2").returncode == 3


def test_a_local_cloud_of_its_own(alone: Cli) -> None:
    """`run --local` needs nothing but the task, which brings what it imports from its folder.

    Neither a proxy in the environment nor an ignored SIGCHLD, which children inherit, leads it astray.
    """
    source = (
        "import signal, subprocess\nimport helper\n"
        "def do_action(engine, args):\n"
        "    code = subprocess.run(['false']).returncode\n"
        "    return [helper.square(args[0]), code, signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL]\n"
    )
    alone.write("own/task.py", source)
    alone.write("own/helper.py", "from parts.core import square\n")
    alone.write("own/parts/core.py", "def square(number):\n    return number ** 2\n")
    alone.write("own/other.py", "")
    proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "HTTP", "HTTPS")}
    ended = subprocess.run(
        ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh", *PROGRAM, "run", "--local", "own/task.py", "3"],
        cwd=alone.folder,
        env={**alone.environment, **proxies},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert parsed(ended.stdout)[0]["value"] == [9, 1, True]
    names = "helper.py, parts/core.py, task.py"
    assert f"files of this run: {names}. For all of the folder: --file own/" in ended.stderr


def test_second_run_of_a_name_is_refused(cli: Cli) -> None:
    """A second run of the same name is told how to go on with the first."""
    assert cli("run", "--session", "once", "square.py", "1").returncode == 0
    words = {"COMP_WORDS": "batchflow run --resume on", "COMP_CWORD": "3"}
    completed = cli(env={"_BATCHFLOW_COMPLETE": "bash_complete", **words})
    assert completed.stdout == "plain,once\n"
    again = cli("run", "--session", "once", "square.py", "1")
    assert again.returncode == 5
    assert "--resume once" in again.stderr
    done = cli("run", "--resume", "once")
    assert (done.returncode, done.stdout) == (0, "")


def test_logs_fetch_an_unread_result(cli: Cli) -> None:
    """`logs N` of a run that was only submitted reads it from the pool; `results` has it afterwards, once."""
    assert cli("submit", "talk.py", "hello", "world", "--session", "sent").returncode == 0
    said = cli("logs", "1", "--run", "sent", "--follow", "--json")
    assert said.returncode == 0, said.stderr
    assert parsed(said.stdout)[0]["stdout"] == "world\n"
    assert [row["index"] for row in cli.rows("results", "sent", "--follow")] == [0, 1]


def test_logs_name_the_place_of_an_unknown_run(cli: Cli) -> None:
    """A run of another machine is not known here: it is told where its output is."""
    unknown = cli("logs", "1", "--run", "theirs")
    assert (unknown.returncode, unknown.stdout) == (3, "")
    assert "this machine has no run 'theirs'" in unknown.stderr
    assert "batchflow logs NODE" in unknown.stderr


def test_results_until_now_are_not_waited_for(cli: Cli) -> None:
    """`results` without --follow ends while tasks end one after the other."""
    assert cli("submit", "nap.py", *["0.2"] * 600, "--session", "many").returncode == 0
    ended = cli("results", "many")
    assert ended.returncode == 0
    assert " to come" in ended.stderr
    assert cli("cancel", "many", "--json").stdout.startswith('{"run":"many"')
