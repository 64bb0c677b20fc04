"""Pools and jobs that a configuration file describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchflow import ConfigurationError
from batchflow.config.project_file import JobSpec, load_configuration
from batchflow.model import PoolSpec


def test_pools_and_jobs_of_a_file(tmp_path: Path) -> None:
    """Paths are relative to the file; a profile's keys go over the file's."""
    path = tmp_path / "batchflow.toml"
    path.write_text(
        '[pools.work]\nnodes = 4\nfiles = ["tasks/"]\njava = 17\nenvironment = {A = "b"}\n'
        'env = {B = "c"}\n[pools.work.secrets]\nC = "hidden"\n'
        '[jobs.night]\npool = "work"\ncommand = "x.py"\ntimeout = 5\nretries = 2\nsecrets = {D = "hidden"}\n'
        "[profiles.small.pools.work]\nnodes = 1\n[profiles.small.pools.more]\nspot = 2\n"
    )
    read = load_configuration(path, environment={})
    files = (str(tmp_path / "tasks"),)
    assert read.pools == {
        "work": PoolSpec(
            "work",
            nodes=4,
            files=files,
            java=17,
            environment={"A": "b"},
            env={"B": "c"},
            secrets={"C": "hidden"},
        )
    }
    assert read.job("night") == JobSpec(
        "night", "work", "x.py", timeout=5, retries=2, secrets={"D": "hidden"}
    )
    assert "hidden" not in repr(read)
    assert read.job("other") == JobSpec("other")
    small = load_configuration(path, profile="small", environment={})
    assert {name: spec.nodes for name, spec in small.pools.items()} == {"work": 1, "more": None}
    assert small.pool("more").spot == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pools = 3", "pools is a table"),
        ("[pools]\na = 3", "pools.a is a table"),
        ("[pools.a]\nnodes = true", "pools.a.nodes must be a whole number, not bool"),
        ("[pools.a]\nfiles = [1]", "pools.a.files must be a list of strings"),
        ('[pools.a]\nspot = ["1"]', "pools.a.spot must be a whole number, or a list of two"),
        ("[pools.a]\nmin_nodes = 3\nmax_nodes = 2", "min_nodes is 3; allowed: at most max_nodes"),
        ('[pools.a]\nid = "b"', "unknown key pools.a.id"),
        ('[jobs.a]\npol = "b"', "unknown key jobs.a.pol; did you mean 'pool'?"),
        ('[pools.a]\nvm_size = "-"', "pool 'a': vm_size is '-'"),
        ('[pools.a]\nenv = "A=hidden"', "pools.a.env must be a table, not str"),
        ("[pools.a]\nenv = {A = 1}", "pool 'a': env: A is of type int"),
        ('[pools.a]\nsecrets = {"A B" = "hidden"}', "pool 'a': secrets: 'A B' cannot"),
        ('[jobs.a]\nsecrets = {"A B" = "hidden"}', "job 'a': secrets: 'A B' cannot"),
    ],
)
def test_a_description_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """The file, the key, and what is allowed."""
    path = tmp_path / "batchflow.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_configuration(path, environment={})
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_requirements_of_a_file_are_a_list_a_path_beside_it_or_what_is_installed(tmp_path: Path) -> None:
    path = tmp_path / "batchflow.toml"
    path.write_text(
        '[pools.a]\nrequirements = ["numpy>=2"]\n[pools.b]\nrequirements = "requirements.txt"\n'
        '[pools.c]\nrequirements = "current"\n[jobs.d]\nrequirements = ["numpy"]\n'
    )
    read = load_configuration(path, environment={})
    wanted = {name: spec.requirements for name, spec in read.pools.items()}
    assert wanted == {"a": ("numpy>=2",), "b": str(tmp_path / "requirements.txt"), "c": "current"}
    assert read.job("d").requirements == ("numpy",)
    path.write_text('[pools.a]\nrequirements = "x.txt"\npip = ["numpy"]\n')
    with pytest.raises(ConfigurationError, match="another name for it"):
        load_configuration(path, environment={})


def test_elastic_pool_of_a_file(tmp_path: Path) -> None:
    """Its spot nodes may be a list of two numbers."""
    file = tmp_path / "batchflow.toml"
    file.write_text("[pools.work]\nmin_nodes = 1\nmax_nodes = 9\nspot = [0, 4]\n")
    read = load_configuration(file, environment={})
    assert read.pools == {"work": PoolSpec("work", min_nodes=1, max_nodes=9, spot=(0, 4))}
