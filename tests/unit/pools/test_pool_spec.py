"""From a spec to what Batch is asked for: refusals, the choice of the image, the start task's script."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchflow import Image, PoolSpec
from batchflow.azure.batch_models import pool_options, task_options
from batchflow.errors import ConfigurationError
from batchflow.model import ManagedIdentity
from batchflow.pools.agent_job import agent_tasks
from batchflow.pools.agent_launch import LaunchCommand, idle_exit
from batchflow.pools.pool_spec import (
    build,
    check,
    check_idle_exit,
    differences,
    limits_of,
    must_be_carried,
    python_of,
    start_command,
)
from batchflow.ports.broker import QueueRef
from batchflow.ports.compute import PoolInfo, ResourceFile, SupportedImage
from batchflow.protocol.documents import PoolManifest, ScalingLimits
from batchflow.settings import LOCAL_NODE, PoolSettings
from tests.support.contract import Contract, at_hand

NOW = 1_800_000_000.0
UBUNTU = SupportedImage("Canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04", end_of_life=2e9)
OLD = SupportedImage("canonical", "ubuntu-old", "20_04", "batch.node.ubuntu 20.04", end_of_life=1.7e9)
ALMA = SupportedImage("almalinux", "almalinux-x86_64", "9-gen2", "batch.node.el 9")
WINDOWS = SupportedImage("microsoft", "windowsserver", "2022", "batch.node.windows amd64", linux=False)
DOCKER = SupportedImage(
    "microsoft-dsvm", "ubuntu-hpc", "2204", "batch.node.ubuntu 22.04", containers=True, end_of_life=2e9
)
IMAGES = (UBUNTU, OLD, ALMA, WINDOWS, DOCKER)
SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n"


def test_empty_spec_gets_the_defaults() -> None:
    """What a spec is silent about comes from the settings, the image from a default that Batch supports."""
    document = build(PoolSpec("p"), PoolSettings(nodes=3, vm_size="standard_d4s_v3"), IMAGES, NOW)
    assert (document.nodes, document.spot, document.vm_size) == (3, 0, "standard_d4s_v3")
    assert (document.image.sku, document.image.node_agent) == ("server", "batch.node.ubuntu 24.04")
    assert document.start_command is None
    assert document.metadata == {"batchflow": "1"}


def test_full_spec_reaches_the_document() -> None:
    """Everything that a spec says reaches the document."""
    spec = PoolSpec(
        "p", nodes=1, spot=2, vm_size="standard_d2s_v5", image="AlmaLinux:almalinux-x86_64:9-gen2:latest",
        start_command="/bin/true", start_user="user", environment={"A": "b"}, subnet=SUBNET,
    )  # fmt: skip
    document = build(spec, PoolSettings(), IMAGES, NOW)
    assert (document.nodes, document.spot, document.vm_size) == (1, 2, "standard_d2s_v5")
    assert (document.image.offer, document.image.node_agent) == ("almalinux-x86_64", "batch.node.el 9")
    assert (document.start_command, document.start_admin) == ("/bin/bash -c 'set -e; /bin/true'", False)
    assert (document.environment, document.subnet) == ({"A": "b"}, SUBNET)


DEBIAN = SupportedImage("debian", "debian-12", "12-gen2", "batch.node.debian 12")


@pytest.mark.parametrize(
    ("fields", "python", "offer", "has"),
    [
        ({}, "3.11", "debian-12", "3.11"),
        ({}, "3.12", "ubuntu-24_04-lts", "3.12"),
        ({}, "3.13", "ubuntu-24_04-lts", "3.12"),
        ({"python": "3.12"}, "3.11", "ubuntu-24_04-lts", "3.12"),
        ({"java": 21}, "3.11", "ubuntu-24_04-lts", "3.12"),
        ({"apt": ("jq=1.7",)}, "3.11", "ubuntu-24_04-lts", "3.12"),
        ({"apt": ("jq",), "java": True}, "3.11", "debian-12", "3.11"),
        ({"image": "almalinux:almalinux-x86_64:9-gen2"}, "3.11", "almalinux-x86_64", None),
        (
            {"image": "almalinux:almalinux-x86_64:9-gen2", "python": "3.14"},
            "3.11",
            "almalinux-x86_64",
            "3.14",
        ),
        ({"container": "mine"}, "3.11", "ubuntu-hpc", None),
        ({"container": "mine", "python": "3.13"}, "3.11", "ubuntu-hpc", "3.13"),
        ({}, None, "ubuntu-24_04-lts", "3.12"),
    ],
)
def test_the_image_has_the_python_that_is_wanted_where_batch_has_one(
    fields: dict[str, Any], python: str | None, offer: str, has: str | None
) -> None:
    spec = PoolSpec("p", **fields)
    image = build(spec, PoolSettings(), (*IMAGES, DEBIAN), NOW, python=python).image
    assert (image.offer, python_of(spec, image)) == (offer, has)


@pytest.mark.parametrize(
    ("fields", "carried"),
    [
        ({}, False),
        ({"python": "3.12"}, False),
        ({"python": "3.14"}, True),
        ({"python": "3.14", "image": "almalinux:almalinux-x86_64:9-gen2"}, False),
        ({"python": "3.14", "container": "python:3.14-slim"}, False),
    ],
)
def test_a_python_that_no_image_has_is_carried_where_neither_image_nor_container_is_named(
    fields: dict[str, Any], carried: bool
) -> None:
    assert must_be_carried(PoolSpec("p", **fields), (*IMAGES, DEBIAN), NOW) is carried


def test_a_python_that_no_image_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"python is '3\.13'; allowed: 3\.11, 3\.12, of which"):
        build(PoolSpec("p", python="3.13"), PoolSettings(), (*IMAGES, DEBIAN), NOW, python="3.11")
    for python in ("3.10", "3", "3.12.1", ""):
        with pytest.raises(ConfigurationError, match="python is"):
            check(PoolSpec("p", python=python))


def test_container_gets_an_image_that_runs_containers() -> None:
    """Nodes that run containers are made of the newest Ubuntu that can; one that cannot is refused."""
    document = build(PoolSpec("p", container="python:3.12-slim"), PoolSettings(), IMAGES, NOW)
    assert document.container == "python:3.12-slim"
    assert (document.image.publisher, document.image.offer, document.image.sku) == (
        "microsoft-dsvm",
        "ubuntu-hpc",
        "2204",
    )
    assert document.image.node_agent == "batch.node.ubuntu 22.04"
    with pytest.raises(ConfigurationError, match=r"container is 'a'.*ubuntu-24_04-lts:server.*no containers"):
        build(PoolSpec("p", container="a", image=Image()), PoolSettings(), IMAGES, NOW)
    with pytest.raises(ConfigurationError, match="images that do: none"):
        build(PoolSpec("p", container="a"), PoolSettings(), (UBUNTU, WINDOWS), NOW)


@pytest.mark.skipif(not at_hand(), reason="the published contract of Batch is not at hand")
def test_containers_fit_the_contract() -> None:
    """The pool with its container images, and the agents' tasks in them, are as Batch's models say."""
    spec = PoolSpec("p", nodes=1, container="registry.example/tasks:1", java=True, subnet=SUBNET)
    pool = pool_options(build(spec, PoolSettings(), IMAGES, NOW)).as_dict()
    machine = pool["virtualMachineConfiguration"]
    assert machine["containerConfiguration"] == {
        "type": "dockerCompatible",
        "containerImageNames": ["registry.example/tasks:1"],
    }
    file = ResourceFile("https://a.blob.core.windows.net/c/agent.json", "agent.json", "0600", identity="/id")
    (task,) = agent_tasks(LaunchCommand("run", (file,)), 0, 1, 1, spec.container)
    body = task_options(task).as_dict()
    assert body["containerSettings"] == {
        "imageName": "registry.example/tasks:1",
        "workingDirectory": "taskWorkingDirectory",
    }
    assert body["resourceFiles"][0]["identityReference"] == {"resourceId": "/id"}
    contract = Contract()
    contract.sent("POST", "/pools", pool)
    contract.sent("POST", "/jobs/j/tasks", body)
    assert contract.verdict() == []
    assert contract.checked >= 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": "no spaces"}, ["no spaces", "1 to 64"]),
        ({"nodes": -1}, ["nodes is -1", "0 or more"]),
        ({"nodes": "two"}, ["nodes is 'two'", "whole number"]),
        ({"spot": -2}, ["spot is -2"]),
        ({"slots": 1.5}, ["slots is 1.5"]),
        ({"vm_size": "no such size!"}, ["vm_size is 'no such size!'", "standard_d2s_v3"]),
        ({"apt": "git"}, ["apt is 'git'", "tuple or list"]),
        ({"apt": ("git; rm -rf /",)}, ["apt is 'git; rm -rf /'", "name=version"]),
        ({"apt": ("-o=evil",)}, ["apt is '-o=evil'"]),
        ({"pip": ("--index-url=x",)}, ["pip is '--index-url=x'", "numpy"]),
        ({"pip": ("a\nb",)}, ["pip is"]),
        ({"java": "new"}, ["java is 'new'", "17"]),
        ({"java": 3}, ["java is 3"]),
        ({"start_command": "  "}, ["start_command is '  '"]),
        ({"start_user": "root"}, ["start_user is 'root'", '"admin" or "user"']),
        ({"start_user": "user", "apt": ("git",)}, ["start_user is 'user'", "packages"]),
        ({"environment": {"1A": "x"}}, ["environment is '1A'"]),
        ({"environment": {"A": 1}}, ["environment['A'] is 'int'", "a string"]),
        ({"environment": ["A=b"]}, ["environment is ['A=b']"]),
        ({"subnet": "my-subnet"}, ["subnet is 'my-subnet'", "/subscriptions/"]),
        ({"container": "Bad Image"}, ["container is 'Bad Image'", "python:3.12-slim"]),
        ({"image": "ubuntu"}, ["image is 'ubuntu'", "publisher:offer:sku"]),
        ({"image": Image("nobody", "nothing", "none")}, ["nobody:nothing:none", "almalinux", "supports"]),
        ({"image": Image("canonical", "ubuntu-old", "20_04")}, ["canonical:ubuntu-old:20_04", "2023-11-14"]),
        ({"image": Image(node_agent="batch.node.el 9")}, ["image.node_agent", "batch.node.ubuntu 24.04"]),
        ({"image": "microsoft:windowsserver:2022"}, ["windowsserver", "Linux"]),
        ({"image": "almalinux:almalinux-x86_64:9-gen2", "apt": ("git",)}, ["apt is ('git',)"]),
    ],
)  # fmt: skip
def test_refusals(fields: dict[str, object], words: list[str]) -> None:
    """What is wrong is refused by its field and value, with what is allowed."""
    with pytest.raises(ConfigurationError) as caught:
        build(PoolSpec(**{"id": "p", **fields}), PoolSettings(), IMAGES, NOW)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_differences_between_spec_and_pool_are_listed() -> None:
    """Each field that a pool which is there keeps is compared, where the spec says something of it."""
    queue = QueueRef("host", "queue")
    manifest = PoolManifest(
        "p", "bf-p-1", (queue,), (queue,), "j", 0.0, owned=True, lock_duration=30.0, slots=2
    )
    info = PoolInfo("p", "active", "steady", "standard_d2s_v3", 1, 1, 0, 0, 1, {}, image=Image())
    same = PoolSpec("p", vm_size="STANDARD_D2S_V3", slots=2, image=Image())
    assert list(differences(PoolSpec("p"), info, manifest)) == []
    assert list(differences(same, info, manifest)) == []
    other = PoolSpec(
        "p", vm_size="standard_d4s_v3", slots=4, image="almalinux:almalinux-x86_64:9-gen2", container="a",
        start_command="/bin/true", identity="0" * 8,
    )  # fmt: skip
    told = list(differences(other, info, manifest))
    assert [each.partition(" is ")[0].partition(" differs")[0] for each in told[:-1]] == [
        "its VM size",
        "its image",
        "its start task",
        "its slots",
        "its container",
    ]
    assert told[-1] == "its agents use keys, not 00000000"
    mine = replace(manifest, identity=ManagedIdentity("/id", "client"))
    assert list(differences(PoolSpec("p", identity="CLIENT"), info, mine)) == []


def test_check_needs_no_account() -> None:
    """What is wrong by itself is seen before Batch is asked for its images."""
    check(PoolSpec("p", image="any:image:here", apt=("git", "gcc=4:13.2.0-7ubuntu1"), java=21))
    with pytest.raises(ConfigurationError, match="nodes"):
        check(PoolSpec("p", nodes=-1))


@pytest.mark.parametrize("packages", [{}, {"apt": ("jq",)}])
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("echo it\\'s me && echo $A", 0, "it's me\nset\n"),
        ("export B=more\necho $B", 0, "more\n"),
        ("echo one; exit 3", 3, "one\n"),
        ("false\necho never", 1, ""),
        ("/bin/sh -c 'echo $A; exit 4'", 4, "set\n"),
    ],
)
def test_start_command_is_run_by_the_same_shell_with_and_without_packages(
    tmp_path: Path, packages: dict[str, Any], line: str, status: int, said: str
) -> None:
    """Batch gives a command line no shell: the line gets one, so that its failure is the start task's."""
    shim = tmp_path / "apt-get"
    shim.write_text("#!/bin/sh\n")
    shim.chmod(0o755)
    command = start_command(PoolSpec("p", start_command=line, **packages))
    assert command is not None
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "A": "set"}
    done = subprocess.run(
        shlex.split(command), env=environment, check=False, timeout=20, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (status, said)


def test_packages_become_a_script(tmp_path: Path) -> None:
    """The start task installs by apt, then runs the user's line, and can do so again, without pip."""
    log = tmp_path / "log"
    for name in ("apt-get", "python3"):
        shim = tmp_path / name
        shim.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        shim.chmod(0o755)
    spec = PoolSpec("p", apt=("git",), pip=("numpy>=2",), java=17, start_command=f'echo "it\'s me" >> {log}')
    command = start_command(spec)
    assert command is not None
    for _ in range(2):
        path = f"{tmp_path}:/usr/bin:/bin"
        subprocess.run(shlex.split(command), env={"PATH": path}, check=True, timeout=20)
    options = "-q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3"
    once = [
        f"apt-get {options} update",
        f"apt-get {options} install --no-install-recommends openjdk-17-jre-headless git",
        "it's me",
    ]
    assert log.read_text().splitlines() == once * 2


def test_start_script_ends_at_the_first_failure(tmp_path: Path) -> None:
    """A package that cannot be had fails the start task."""
    shim = tmp_path / "apt-get"
    shim.write_text("#!/bin/sh\nexit 100\n")
    shim.chmod(0o755)
    command = start_command(PoolSpec("p", java=True, start_command="exit 0"))
    assert command is not None
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(shlex.split(command), env=environment, check=False, timeout=20).returncode == 100


def _shim(folder: Path, name: str, script: str) -> None:
    shim = folder / name
    shim.write_text(f"#!/bin/sh\n{script}\n")
    shim.chmod(0o755)


def test_update_is_tried_again_while_the_lists_are_locked_and_for_no_other_failure(tmp_path: Path) -> None:
    """The machine's own upgrades hold the lock of the lists, for which apt-get itself does not wait."""
    log = tmp_path / "log"
    locked = 'echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7" >&2; exit 100'
    tries = f"[ $(grep -c update {log}) -ge 3 ] || {{ {locked}; }}"
    _shim(tmp_path, "apt-get", f'case "$*" in *update) echo update >> {log}; {tries};; esac')
    _shim(tmp_path, "sleep", f"echo sleep >> {log}")
    command = start_command(PoolSpec("p", apt=("git",)))
    assert command is not None
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(shlex.split(command), env=environment, check=True, timeout=20)
    assert log.read_text().split() == ["update", "sleep", "update", "sleep", "update"]

    _shim(tmp_path, "apt-get", f'echo "$@" >> {log}; echo "E: no permission" >&2; exit 100')
    log.write_text("")
    done = subprocess.run(
        shlex.split(command), env=environment, check=False, timeout=20, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (100, "E: no permission\n")
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"apt": ("there", "there=1:2+b~1", "command-x"), "java": 17}, ""),
        ({"java": True}, ""),
        (
            {"apt": ("there=2", "absent", "removed"), "java": 21},
            "openjdk-21-jre-headless there=2 absent removed",
        ),
    ],
)
def test_node_of_the_local_cloud_checks_for_packages_and_installs_none(
    tmp_path: Path, asked: dict[str, Any], missing: str
) -> None:
    """It is the user's own machine: what is missing is named, with how to install it by hand."""
    log = tmp_path / "log"
    for name in ("apt-get", "sudo"):
        _shim(tmp_path, name, f"echo {name} >> {log}; exit 100")
    _shim(tmp_path, "command-x", "exit 1")
    known = 'there) printf "installed=1:2+b~1\\n";; removed) printf "config-files=1\\n";; *) exit 1'
    _shim(tmp_path, "dpkg-query", f'for name; do :; done; case "$name" in {known};; esac')
    _shim(tmp_path, "java", "echo 'Picked up X' >&2; echo 'openjdk version \"17.0.9\" 2023-10-17' >&2")
    command = start_command(PoolSpec("p", start_command="echo went on", **asked))
    assert command is not None
    done = subprocess.run(
        shlex.split(command),
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", LOCAL_NODE: "1"},
        check=False,
        timeout=20,
        capture_output=True,
        text=True,
    )
    assert not log.exists()
    assert done.stdout == ("" if missing else "went on\n")
    assert done.returncode == (1 if missing else 0)
    if missing:
        assert f"are missing: {missing};" in done.stderr
        assert f"sudo apt-get install {missing})" in done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"min_nodes": 3, "max_nodes": 2}, "min_nodes is 3; allowed: at most max_nodes, which is 2"),
        ({"nodes": 2, "max_nodes": 3}, "nodes is 2; allowed: None beside max_nodes"),
        ({"min_nodes": 1}, "min_nodes is 1; allowed: None without max_nodes"),
        ({"max_nodes": 0}, "max_nodes is 0; allowed: 1 or more"),
        ({"max_nodes": -1}, "max_nodes is -1"),
        ({"spot": (0, 2)}, r"spot is \(0, 2\); allowed: a range in an elastic pool alone"),
        ({"max_nodes": 1, "spot": (3, 2)}, "the least, then the most"),
        ({"max_nodes": 1, "spot": (3,)}, "or two of them"),
        ({"spot": True}, "spot is True"),
        ({"max_nodes": 1, "dedicated_share": 2}, "dedicated_share is 2; allowed: a number from 0 to 1"),
    ],
)
def test_size_that_is_neither_fixed_nor_elastic_is_refused(given: dict[str, Any], words: str) -> None:
    """The refusal names the field."""
    with pytest.raises(ConfigurationError, match=words):
        check(PoolSpec("p", **given))


def test_bounds_of_an_elastic_pool() -> None:
    """Spot nodes have a least number where two are given; a formula takes the place of the counts."""
    assert limits_of(PoolSpec("p", nodes=3)) is None
    assert limits_of(PoolSpec("p", max_nodes=5, spot=2)) == ScalingLimits(0, 5, 0, 2)
    spec = PoolSpec("p", min_nodes=1, max_nodes=5, spot=(1, 3))
    assert limits_of(spec) == ScalingLimits(1, 5, 1, 3)
    assert build(spec, PoolSettings(), IMAGES, NOW, "a formula").formula == "a formula"


def test_agents_of_an_elastic_pool_have_to_leave() -> None:
    """By default after ten minutes; those of another pool after half an hour, or never."""
    with pytest.raises(ConfigurationError, match=r"agent\.idle_exit is 0"):
        check_idle_exit(PoolSpec("p", max_nodes=5), 0.0)
    check_idle_exit(PoolSpec("p", nodes=5), 0.0)
    assert [idle_exit(None, elastic=True), idle_exit(None, elastic=False)] == [600.0, 1800.0]
    assert [idle_exit(0.0, elastic=True), idle_exit(0.0, elastic=False)] == [600.0, None]
    assert [idle_exit(9.0, elastic=True), idle_exit(9.0, elastic=False)] == [9.0, 9.0]
