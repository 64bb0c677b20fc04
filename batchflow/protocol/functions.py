"""How a task names the function that it calls. Pure.

The command is `module:qualname`. A function by name is imported; one by value lies in a bundle of its own,
whose one file is the pickle. The name of that file says which Python can open it.
"""

from __future__ import annotations

import sys
from typing import Final

PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""The minor version of Python that this process runs on."""
_PREFIX: Final = "function-"
_SUFFIX: Final = ".pickle"


def pickle_name(python: str) -> str:
    """Return the name of the file of a function that this Python pickled."""
    return f"{_PREFIX}{python}{_SUFFIX}"


def python_of(name: str) -> str | None:
    """Return the Python that can open the file; None when the file is no function."""
    if not name.startswith(_PREFIX) or not name.endswith(_SUFFIX):
        return None
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
