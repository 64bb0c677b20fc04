"""How many threads the libraries of tasks start for themselves, as far as an environment variable says it.

Each would start one for every core of the node, and so would the tasks of all other slots: with eight slots
eight times as many threads as cores. So the default is the slot's share of the cores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from node_agent.system import process_groups

_COMMON: Final = "OMP_NUM_THREADS"
"""What OpenMP reads, and the libraries of `_FOLLOWING` where their own variable is not set."""
_FOLLOWING: Final = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_OTHERS: Final = ("NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


def task_environment(home: Path, slots: int) -> dict[str, str]:
    """Return the environment of the tasks of an agent with so many slots; `home`: see `process_groups`."""
    return limited(process_groups.environment(home), len(os.sched_getaffinity(0)), slots)


def limited(env: Mapping[str, str], cores: int, slots: int) -> dict[str, str]:
    """Return an environment with the variables that are not in it: for each, a slot's share of the cores."""
    share = str(max(1, cores // slots))
    return dict.fromkeys((_COMMON, *_FOLLOWING, *_OTHERS), share) | followed(env)


def followed(variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables with those that follow `OMP_NUM_THREADS`, if it is one of them.

    The defaults of the others would otherwise outweigh it.
    """
    if (common := variables.get(_COMMON)) is None:
        return dict(variables)
    return dict.fromkeys(_FOLLOWING, common) | dict(variables)
