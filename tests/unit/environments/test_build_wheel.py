"""The task that builds a wheel: what its failures name."""

from __future__ import annotations

import pytest

from batchflow.environments.build_wheel import reason


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("error: command 'gcc' failed: No such file or directory", "(gcc)"),
        ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory", "(x86_64-linux-gnu-gcc)"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'g++'", "(g++)"),
        ("/bin/sh: 1: gfortran: not found", "(gfortran)"),
        ("error: can't find Rust compiler", "(can't find Rust compiler)"),
        ("meson: ERROR: Unknown compiler(s): [['cc'], ['gcc']]", "(Unknown compiler(s))"),
    ],
)
def test_a_compiler_that_is_not_there_is_named(said: str, named: str) -> None:
    text = reason("pack==1.0", f"running build_ext\n{said}\n")
    assert text.startswith("pack==1.0 has no wheel for the nodes, and building it needs a compiler")
    assert named in text


def test_another_failure_is_told_by_its_end() -> None:
    text = reason("pack==1.0", "x" * 9000 + "\nModuleNotFoundError: No module named 'numpy'\n")
    assert text.endswith("No module named 'numpy'")
    assert len(text) < 5000
