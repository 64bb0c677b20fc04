"""The user that the commands of local nodes run as, where root starts the cloud and names another user.

Then tasks cannot read what the cloud keeps for its owner: the file of its settings, with the accounts' keys,
and its blobs.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from batchflow.errors import ConfigurationError
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from pathlib import Path

_PROBE: Final = (sys.executable, "-c", "import node_agent, os, sys; os.chdir(sys.argv[1])")
_PROBE_TIMEOUT: Final = 30.0
_TAIL: Final = 300


@frozen
class NodeUser:
    """A user of this machine, who is not root."""

    name: str
    uid: int
    gid: int

    def __str__(self) -> str:
        """As the reaper takes it."""
        return f"{self.uid}:{self.gid}"

    def own(self, directory: Path) -> None:
        """Give a directory and what is in it to the user. Links are not followed."""
        for folder, _, names in os.walk(directory):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, self.uid, self.gid, follow_symlinks=False)


def find(name: str) -> NodeUser:
    """Return the user of that name. Raises `ConfigurationError` when nodes cannot run as this user."""
    if os.geteuid() != 0:
        raise ConfigurationError(f"node_user {name!r}: only root can start nodes as another user")
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigurationError(f"node_user: this machine has no user {name!r}") from None
    if found.pw_uid == 0:
        raise ConfigurationError("node_user: root is whom the nodes are kept apart from; name another user")
    return NodeUser(name, found.pw_uid, found.pw_gid)


def check_agents(user: NodeUser, nodes: Path) -> None:
    """Raise `ConfigurationError` when the user cannot run agents with this Python, in that folder."""
    try:
        ended = subprocess.run(
            (*_PROBE, str(nodes)),
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
            check=False,
            user=user.uid,
            group=user.gid,
            extra_groups=(),
        )
        said = ended.stderr.strip()[-_TAIL:] if ended.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        raise ConfigurationError(
            f"node_user {user.name!r} cannot run agents with {sys.executable} in {nodes}: {said}; install "
            "Python and batchflow where this user can read them"
        )
