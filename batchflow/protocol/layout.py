"""The names of blobs, containers and queues, and what names of jobs, clients and pools may be. Pure.

Where they lie:

- `batchflow`, one container for the account: `pools/<pool>.json`, the pool manifests;
  `logs/<pool>/<generation>/<node>/<agent>.log`, the logs of agents of deleted pools;
  `boots/<kind>.json`, how long nodes of a kind take to boot.
- `<prefix>-ctl`, one for a pool: agents read; clients read and write.
  `bundles/<hash>.json`, `files/<hash>`, `environments/<hash>.json`, `jobs/<job>.json`,
  `sessions/<job>/<client>.json`, `ended/<job>/<client>/<incarnation>-<counts>`,
  `cancel/<job>/<client>.json`, `args/<job>/<client>/<uid>`, `agent/<hash>.json`, `agent/drain.json`,
  `agent/broadcasts.json` (`protocol.broadcasts`),
  `variables/pool/<random>`, `variables/jobs/<job>/<random>`, `variables/sessions/<job>/<client>/<random>`,
  `scaling/<client>.json`, `failed/...` as below, `monitor/logs.json`.
- `<prefix>-out`, one for a pool: agents create and write; clients read and delete.
  `agents/<agent>.json`, `usage/<agent>.json`, `budgets/...` (`protocol.budgets`),
  `activity/<agent>/<segment>.jsonl` (`protocol.activity`),
  `results/<job>/<client>/<name>`, `outputs/<job>/<client>/<uid>/<execution>/<name>`,
  `logs/<pool>/<node>/<agent>.log`, `failed/<job>/<client>/<uid>-<attempt>.json` (`protocol.failed_tasks`).

Each pool gets a new prefix, because the name of a deleted container stays taken for half a minute or more.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Final, TypeVar

from batchflow.errors import ConfigurationError

T = TypeVar("T")

INDEX_CONTAINER: Final = "batchflow"
DEFAULT_JOB: Final = "default"

UNDER_WAY: Final = ("waiting", "sending", "queued", "running")
"""The states of tasks that have not ended, as `Counts` names them."""
ENDED: Final = ("succeeded", "failed", "cancelled")
"""The states of a task that has ended, as `ended_blob` counts them."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_OURS: Final = re.compile(r"bf(-[a-z0-9-]{1,32})?-[0-9a-f]{8}-(ctl|out|(tasks|results)[0-9]*)")
_POOL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(what: str, name: str) -> str:
    """Check a job's or a client's name, which becomes part of a Service Bus session id and of blob names."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r}: 1 to 60 letters, digits, '.', '_' or '-', the first a letter or a digit"
        )
    return name


def check_pool_id(pool_id: str) -> str:
    """Check a pool id by the rules of Azure Batch."""
    if not _POOL_ID.fullmatch(pool_id):
        raise ConfigurationError(f"pool id {pool_id!r}: 1 to 64 letters, digits, '-' or '_'")
    return pool_id


def manifest_blob(pool_id: str) -> str:
    """Return the blob of a pool's manifest. Pool ids are case-insensitive in Azure Batch."""
    return f"pools/{pool_id.lower()}.json"


def name_prefix(pool_id: str, nonce: str) -> str:
    """Return the prefix of the containers and queues of a new pool. `nonce`: some hexadecimal digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", pool_id.lower()).strip("-")[:32].strip("-")
    return "-".join(part for part in ("bf", slug, nonce) if part)


def is_ours(name: str) -> bool:
    """Tell whether a container or a queue is named as a pool's are. Others may begin like that, too."""
    return _OURS.fullmatch(name) is not None


def job_blob(job: str) -> str:
    return f"jobs/{job}.json"


SESSIONS: Final = "sessions/"
"""What the names of all presence documents begin with."""


def session_blob(job: str, client: str) -> str:
    return f"{SESSIONS}{job}/{client}.json"


def ended_prefix(job: str) -> str:
    """Return the prefix of the blobs that tell of a job's closed sessions."""
    return f"ended/{job}/"


def ended_blob(
    job: str, client: str, incarnation: str, *, ended: Sequence[int], unread: Sequence[int]
) -> str:
    """Return the blob that tells how a closed session's tasks ended: succeeded, failed, cancelled.

    `unread`: those of them that no call had claimed, which a later session of the name is shown. The blob's
    name says all, so that one listing reads those of many sessions.
    """
    return f"{ended_prefix(job)}{client}/{'-'.join([incarnation, *map(str, [*ended, *unread])])}"


def read_ended(job: str, blob: str) -> tuple[str, str, list[int], list[int]]:
    """Return client, incarnation, ended and unread of such a blob. Raises ValueError for another name."""
    client, _, told = blob.removeprefix(ended_prefix(job)).partition("/")
    incarnation, *counts = told.split("-")
    numbers = [int(count) for count in counts]
    if len(numbers) != 2 * len(ENDED):
        raise ValueError(f"{blob!r} does not name a closed session")
    return client, incarnation, numbers[: len(ENDED)], numbers[len(ENDED) :]


def cancellation_prefix(job: str) -> str:
    """Return the prefix of the cancellation documents of a job's clients."""
    return f"cancel/{job}/"


def cancellation_blob(job: str, client: str) -> str:
    return f"{cancellation_prefix(job)}{client}.json"


ARGUMENTS: Final = "args/"
"""What the names of all blobs with arguments begin with."""


def arguments_blob(job: str, client: str, uid: str) -> str:
    return f"args/{job}/{client}/{uid}.json"


def waiting_prefix(job: str, client: str) -> str:
    """Return what the documents with tasks that wait begin with: they are kept as arguments are."""
    return f"args/{job}/{client}/waiting-"


def arguments_prefix(session_blob: str) -> str:
    """Return what the blobs of a session's arguments begin with. `session_blob`: its presence document."""
    return f"args/{session_blob.removeprefix('sessions/').removesuffix('.json')}/"


VARIABLES: Final = "variables/"
"""What the names of all blobs with variables of tasks begin with."""


def pool_variables_prefix() -> str:
    return f"{VARIABLES}pool/"


def job_variables_prefix(job: str) -> str:
    return f"{VARIABLES}jobs/{job}/"


def session_variables_prefix(session_blob: str = "sessions/") -> str:
    """Return what the blobs with variables of a session's tasks begin with.

    `session_blob`: its presence document, or what the documents of several begin with.
    """
    return f"{VARIABLES}{session_blob.removesuffix('.json').removesuffix('/')}/"


def result_blob(job: str, client: str, uid: str, attempt: int, agent: str) -> str:
    """Return a result's blob, a new one for each execution, so that none is overwritten."""
    return f"results/{job}/{client}/{uid}-{attempt}-{agent}.json"


OUTPUTS: Final = "outputs/"


def outputs_prefix(job: str, client: str, uid: str, folder: str = "") -> str:
    """Return the prefix of a task's output folder; `folder`: of one execution's folder in it."""
    return f"{OUTPUTS}{job}/{client}/{uid}/{folder}/" if folder else f"{OUTPUTS}{job}/{client}/{uid}/"


HEARTBEATS: Final = "agents/"
"""What the names of all heartbeats begin with."""


def heartbeat_blob(agent: str) -> str:
    return f"{HEARTBEATS}{agent}.json"


ACTIVITY: Final = "activity/"
"""What the names of the blobs begin with in which agents record what their slots did."""
USAGE: Final = "usage/"


def usage_blob(agent: str) -> str:
    """Return the blob in which an agent keeps what it has used of its node."""
    return f"{USAGE}{agent}.json"


WISHES: Final = "scaling/"
"""The prefix of the documents in which clients say how many agents they want."""


def wish_blob(who: str) -> str:
    """Return the blob of a client's wish. `who`: the client, as its wishes name it."""
    return f"{WISHES}{who}.json"


def boots_blob(kind: str) -> str:
    """Return the blob of the boots of a kind of node."""
    return f"boots/{kind}.json"


DRAIN_BLOB: Final = "agent/drain.json"
BROADCAST_BLOB: Final = "agent/broadcasts.json"


def interpreter_blob(archive: str) -> str:
    """Return the blob of a Python that agents bring. `archive`: its name, which tells its content."""
    return f"agent/{archive}"


LOGS: Final = "logs/"


def log_blob(pool: str, node: str, agent: str) -> str:
    """Return a log's blob. Its name says all, because a log may be the last trace of its node or pool."""
    return f"{LOGS}{pool.lower()}/{node}/{agent}.log"


def queue_for(queues: Sequence[T], mailbox: str) -> T:
    """Return which of the pool's queues serves a mailbox. All clients and agents get the same answer."""
    return queues[zlib.crc32(mailbox.encode()) % len(queues)] if len(queues) > 1 else queues[0]
