"""Turns the spec of a pool into the document that Batch is asked for.

Pure. `check` refuses what can be seen to be wrong by itself, `build` what the account's images tell; both
before anything is created. A refusal names the pool, the field, its value and what is allowed.

The start task is one script when packages are asked for: it can run again at every boot, waits for the
machine's own upgrades instead of failing on their lock, and ends at the first command that fails. On a node
of the local cloud, which is the user's own machine, it installs nothing and fails where a package is missing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Protocol

from batchflow.errors import ConfigurationError
from batchflow.model import Budget, Image, PoolSpec
from batchflow.ports.compute import PoolDocument
from batchflow.protocol import documents, layout
from batchflow.protocol.needs import are_tags
from batchflow.protocol.variables import TaskVariables, task_variables
from batchflow.settings import LOCAL_NODE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchflow.model import ManagedIdentity
    from batchflow.ports.compute import PoolInfo, SupportedImage


class Defaults(Protocol):
    """The values of a pool where its spec is silent."""

    @property
    def nodes(self) -> int: ...
    @property
    def vm_size(self) -> str: ...
    @property
    def autoscale_interval(self) -> float: ...


MOST_SHARDS: Final = 20
"""Shards of a pool; every agent and every session has a connection to each."""
MADE_BY: Final = {"batchflow": "1"}
"""The metadata of the Batch pools that batchflow made."""

_APT: Final = "apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3"
"""The lock is held by unattended upgrades for minutes after a boot."""
_UPDATE: Final = (
    f"while ! said=$(LC_ALL=C {_APT} update 2>&1); do "
    'if [[ $said != *"Could not get lock"* || $SECONDS -gt 600 ]]; then echo "$said" >&2; exit 100; fi; '
    'sleep 5; done; [ -z "$said" ] || echo "$said"'
)
"""The option waits for the lock of the packages alone: apt-get fails at once where the lists are locked."""
_PRESENT: Final = (
    "present() { "
    r"""dpkg-query -W -f '${db:Status-Status}=${Version}\n' "$1" 2>/dev/null """
    '| grep -qx "installed=${2:-.*}" || { [ -z "$2" ] && command -v "$1" >/dev/null; }; }'
)
"""Whether a Debian package, or a command of its name, is there. The second argument: its version, or ""."""
_JAVA_PRESENT: Final = (
    r"""java_present() { has=$(java -version 2>&1 | sed -n 's/.* version "\(1\.\)*\([0-9]*\).*/\2/p'); """
    '[ "${has:-0}" -ge "$1" ]; }'
)
"""Whether there is a Java runtime of this version or a newer one."""
_HAS_APT: Final = ("ubuntu", "debian")
_JAVA: Final = range(8, 100)

_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]*(=[A-Za-z0-9.+:~-]+)?")
_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][^\n\r\0]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VM_SIZE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_CONTAINER: Final = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*")
_SUBNET: Final = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Network/virtualNetworks/[^/]+/subnets/[^/]+",
    re.IGNORECASE,
)
_IDENTITY: Final = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ManagedIdentity/"
    r"userAssignedIdentities/[^/]+",
    re.IGNORECASE,
)
_PYTHON: Final = re.compile(r"3\.(1[1-9]|[2-9][0-9])")
_IMAGE_WITH: Final[Mapping[str, Image]] = {
    "3.11": Image("debian", "debian-12", "12-gen2"),
    "3.12": Image(),
    "3.13": Image("debian", "debian-13", "13-gen2"),
}
"""The image of a pool by the minor version of its `python3`."""
_PYTHON_OF: Final[Mapping[str, str]] = {
    "batch.node.debian 12": "3.11",
    "batch.node.ubuntu 24.04": "3.12",
    "batch.node.debian 13": "3.13",
}
"""The minor version of `python3` by the node agent of an image."""
_PATTERNS: Final = {
    "python": (_PYTHON, 'a minor version that agents run on, such as "3.12"; 3.11 is the oldest'),
    "vm_size": (_VM_SIZE, 'a VM size of Azure, such as "standard_d2s_v3"'),
    "apt": (_PACKAGE, 'Debian packages, each "name" or "name=version"'),
    "pip": (_REQUIREMENT, 'requirements as pip takes them, such as "numpy>=2", one in each item'),
    "requirements": (_REQUIREMENT, 'requirements as pip takes them, such as "numpy>=2", one in each item'),
    "subnet": (_SUBNET, 'the resource id "/subscriptions/.../virtualNetworks/<name>/subnets/<name>"'),
    "identity": (_IDENTITY, "the client id (a UUID) or the resource id of a user-assigned managed identity"),
    "container": (_CONTAINER, 'a container image, such as "python:3.12-slim"'),
}


def check(spec: PoolSpec) -> None:
    """Check a spec without an account. Raises `ConfigurationError` for what no account would accept."""
    layout.check_pool_id(spec.id)
    for key, least in (("nodes", 0), ("min_nodes", 0), ("max_nodes", 0), ("slots", 0), ("shards", 1)):
        _check_count(spec, key, least)
    _check_size(spec)
    if spec.shards is not None and spec.shards > MOST_SHARDS:
        raise refusal(spec, "shards", spec.shards, f"1 to {MOST_SHARDS}")
    for key in ("apt", "pip"):
        _check_list(spec, key)
    _check_requirements(spec)
    for key in ("vm_size", "subnet", "container", "identity", "python"):
        if (value := getattr(spec, key)) is not None:
            _check_pattern(spec, key, value)
    if not isinstance(spec.java, bool | int) or (
        spec.java is not True and spec.java and spec.java not in _JAVA
    ):
        raise refusal(spec, "java", spec.java, "True, or a version such as 17 or 21")
    if not isinstance(spec.share_processes, bool):
        raise refusal(spec, "share_processes", spec.share_processes, "True or False")
    if spec.budget is not None and not isinstance(spec.budget, Budget):
        raise refusal(spec, "budget", spec.budget, "a Budget, such as Budget(node_hours=10)")
    if spec.sharing not in ("fifo", "fair"):
        raise refusal(spec, "sharing", spec.sharing, '"fifo" or "fair"')
    if not are_tags(spec.tags):
        raise refusal(spec, "tags", spec.tags, 'a list of words, such as ["ssd"]')
    _check_start(spec)
    variables_of(spec)
    image_of(spec)


def variables_of(spec: PoolSpec, present: TaskVariables | None = None) -> TaskVariables:
    """Return the variables of the pool's tasks. Raises `ConfigurationError`, without any value.

    `present`: those that the pool has, for what the spec does not say.
    """
    env, secrets = spec.env, spec.secrets
    if present is not None:
        env = present.env if env is None else env
        secrets = present.secrets if secrets is None else secrets
    return task_variables(env, secrets, f"pool {spec.id!r}")


def limits_of(spec: PoolSpec) -> documents.ScalingLimits | None:
    """Return the bounds of an elastic pool; None for a pool of a fixed size."""
    if spec.max_nodes is None:
        return None
    low, high = _spot_range(spec)
    return documents.ScalingLimits(spec.min_nodes or 0, spec.max_nodes, low, high, spec.dedicated_share)


def check_idle_exit(spec: PoolSpec, idle_exit: float | None) -> None:
    """Raise `ConfigurationError` for an elastic pool whose agents would never leave."""
    if spec.max_nodes is not None and idle_exit == 0:
        text = "agent.idle_exit is 0: agents never leave, so the pool never shrinks; allowed: 1 or more"
        raise ConfigurationError(f"pool {spec.id!r}: {text} (600 by default)")


def build(
    spec: PoolSpec,
    defaults: Defaults,
    images: Sequence[SupportedImage],
    now: float,
    formula: str | None = None,
    python: str | None = None,
) -> PoolDocument:
    """Make the document of a pool. Raises `ConfigurationError`.

    `images`: those that the account supports. `formula`: what decides the size of an elastic pool. `python`:
    the minor version that its image is to have, where the spec does not say.
    """
    check(spec)
    if spec.identity is not None:
        allowed = (
            "None for a pool that is not there: Batch gives a pool identities only when it is made through "
            "Azure's management (docs/azure.md); make it there, then attach"
        )
        raise refusal(spec, "identity", spec.identity, allowed)
    supported = choose_image(spec, images, now, python)
    return PoolDocument(
        id=spec.id,
        vm_size=spec.vm_size or defaults.vm_size,
        image=Image(
            supported.publisher, supported.offer, supported.sku, image_of(spec).version, supported.node_agent
        ),
        nodes=defaults.nodes if spec.nodes is None else spec.nodes,
        spot=0 if isinstance(spec.spot, tuple) else spec.spot,
        formula=formula,
        formula_interval=defaults.autoscale_interval,
        start_command=start_command(spec),
        start_admin=spec.start_user == "admin",
        environment=spec.environment,
        metadata=MADE_BY,
        subnet=spec.subnet,
        container=spec.container,
    )


def choose_identity(
    spec: PoolSpec, there: Sequence[ManagedIdentity], *, wanted: bool
) -> ManagedIdentity | None:
    """Choose the pool's identity that its agents use; None: they get keys. Raises `ConfigurationError`.

    `wanted`: whether an identity is needed although the spec names none, because the client holds no keys.
    """
    if spec.identity is not None:
        asked = spec.identity.lower()
        for each in there:
            if asked in (each.client_id.lower(), each.resource_id.lower()):
                return each
        names = ", ".join(each.resource_id for each in there) or "none: docs/azure.md tells how to make one"
        raise refusal(spec, "identity", spec.identity, f"an identity that the pool has, which is {names}")
    if wanted and len(there) > 1:
        names = ", ".join(each.resource_id for each in there)
        raise refusal(spec, "identity", None, f"one of {names}: which one do the agents use?")
    return there[0] if wanted and there else None


def differences(spec: PoolSpec, info: PoolInfo, manifest: documents.PoolManifest) -> Iterator[str]:
    """List the differences between a spec and an existing pool, which the pool keeps."""
    size, identity = spec.vm_size, manifest.identity
    image = None if spec.image is None else image_of(spec)
    if size is not None and size.lower() != info.vm_size.lower():
        yield f"its VM size is {info.vm_size}, not {size}"
    if image is not None and info.image is not None and _name(image) != _name(info.image):
        yield f"its image is {':'.join(_name(info.image))}, not {':'.join(_name(image))}"
    if start_command(spec) not in (None, info.start_command):
        yield "its start task differs: pool.repurpose(files, reset=True, spec=spec) changes it"
    for key, has in (("slots", manifest.slots), ("container", manifest.container)):
        if (wanted := getattr(spec, key)) not in (None, has):
            yield f"its {key} is {has}, not {wanted}"
    limits = limits_of(spec)
    if limits != manifest.elastic and (limits is not None or spec.nodes is not None):
        wanted_size = limits or f"{spec.nodes} nodes"
        yield f"its size is {manifest.elastic or 'fixed'}, not {wanted_size}: pool.resize() changes it"
    if manifest.python is not None and spec.python not in (None, manifest.python):
        yield f"its nodes have Python {manifest.python}, not {spec.python}"
    if spec.share_processes and not manifest.share_processes:
        yield "its sessions share no processes: pool.session(share_processes=True) does so for one of them"
    if spec.sharing == "fair" and not manifest.lanes:
        yield "its sessions share the slots first come, first served: a pool is made with sharing='fair'"
    if missing := [tag for tag in spec.tags if tag not in manifest.tags]:
        yield f"its nodes have no tag {missing[0]!r}: a pool keeps the tags that it was made with"
    budget = None if manifest.budget is None else manifest.budget.budget
    if spec.budget is not None and spec.budget != budget:
        yield f"its budget is {budget or 'without a limit'}, as it was created, not {spec.budget}"
    names = () if identity is None else (identity.client_id.lower(), identity.resource_id.lower())
    if spec.identity is not None and spec.identity.lower() not in names:
        yield f"its agents use {identity.resource_id if identity else 'keys'}, not {spec.identity}"


def image_of(spec: PoolSpec) -> Image:
    """Return the image that was asked for, or the default one. Raises `ConfigurationError`."""
    if spec.image is None or isinstance(spec.image, Image):
        return spec.image or Image()
    parts = spec.image.split(":") if isinstance(spec.image, str) else []
    if len(parts) not in (3, 4) or not all(parts):
        allowed = '"publisher:offer:sku", "publisher:offer:sku:version" or an Image'
        raise refusal(spec, "image", spec.image, allowed)
    return Image(*parts)


def choose_image(
    spec: PoolSpec, images: Sequence[SupportedImage], now: float, python: str | None = None
) -> SupportedImage:
    """Choose the entry of Batch's list that the spec's image stands for. Raises `ConfigurationError`.

    A spec with a container and without an image gets the newest Ubuntu that runs containers. One with neither
    gets an image with its Python; else one with `python`, where Batch has it and nothing asks for Ubuntu.
    """
    if spec.container is not None and spec.image is None:
        return _image_for_containers(spec, images, now)
    if spec.image is None:
        usable_with = dict(_images_by_python(images, now))
        if spec.python is not None and spec.python not in usable_with:
            has = ", ".join(sorted(usable_with)) or "none"
            allowed = f"{has}, of which this Batch account has an image; or name an `image` with it, or a "
            allowed += "mirror that has it in agent.python_mirror"
            raise refusal(spec, "python", spec.python, allowed)
        version = spec.python or (None if _asks_for_ubuntu(spec) else python)
        if version is not None and version in usable_with:
            return _check_image(spec, usable_with[version], now, "another image")
    image = image_of(spec)
    wanted = _name(image)
    usable = [each for each in images if _is_usable(each, now)]
    allowed = f"one of {', '.join(sorted({':'.join(_name(each)) for each in usable})) or 'none'}"
    found = [each for each in images if _name(each) == wanted]
    if not found:
        raise refusal(spec, "image", ":".join(wanted), f"{allowed}, which this Batch account supports")
    agent = image.node_agent
    matching = [each for each in found if agent is None or each.node_agent.lower() == agent.lower()]
    if not matching:
        agents = ", ".join(each.node_agent for each in found)
        raise refusal(spec, "image.node_agent", agent, f"{agents} with the image {':'.join(wanted)}")
    return _check_image(spec, matching[0], now, allowed)


def must_be_carried(spec: PoolSpec, images: Sequence[SupportedImage], now: float) -> bool:
    """Tell whether no image has the Python of a spec, which names neither an image nor a container."""
    has = dict(_images_by_python(images, now))
    own = spec.image is None and spec.container is None
    return own and spec.python is not None and spec.python not in has


def python_of(spec: PoolSpec, image: Image) -> str | None:
    """Return the minor version of `python3` where the agents of a pool run; None when it is not known."""
    known = None if spec.container is not None else _PYTHON_OF.get((image.node_agent or "").lower())
    return spec.python or known


def _images_by_python(images: Sequence[SupportedImage], now: float) -> Iterator[tuple[str, SupportedImage]]:
    for python, image in _IMAGE_WITH.items():
        for each in images:
            if _name(each) == _name(image) and _is_usable(each, now):
                yield python, each


def _asks_for_ubuntu(spec: PoolSpec) -> bool:
    """Return whether a spec names packages that another distribution may not have."""
    return spec.java not in (True, False) or any("=" in package for package in spec.apt)


def _is_usable(image: SupportedImage, now: float) -> bool:
    return image.linux and (image.end_of_life is None or image.end_of_life > now)


def _image_for_containers(spec: PoolSpec, images: Sequence[SupportedImage], now: float) -> SupportedImage:
    able = [each for each in images if each.containers and _is_usable(each, now)]
    ubuntu = [each for each in able if "ubuntu" in each.node_agent.lower()]
    if not ubuntu:
        names = ", ".join(sorted(":".join(_name(each)) for each in able)) or "none"
        allowed = f"None: no Ubuntu that this Batch account supports runs containers; images that do: {names}"
        raise refusal(spec, "container", spec.container, allowed)
    return max(ubuntu, key=lambda each: (each.node_agent.lower(), each.sku))


def _check_image(spec: PoolSpec, image: SupportedImage, now: float, allowed: str) -> SupportedImage:
    name = ":".join(_name(image))
    if not image.linux:
        raise refusal(spec, "image", name, f"{allowed}; agents run on Linux")
    if image.end_of_life is not None and image.end_of_life <= now:
        end = datetime.fromtimestamp(image.end_of_life, UTC).date()
        raise refusal(spec, "image", name, f"{allowed}; the end of this one's life was {end}")
    if spec.container is not None and not image.containers:
        raise refusal(spec, "container", spec.container, f"None with {name}, whose nodes run no containers")
    if (spec.apt or spec.java) and not any(word in image.node_agent for word in _HAS_APT):
        key = "apt" if spec.apt else "java"
        text = f"nothing on {name}: packages are installed by apt-get; use start_command there"
        raise refusal(spec, key, getattr(spec, key), text)
    return image


def start_command(spec: PoolSpec) -> str | None:
    """Return the start task's command line; None when it has nothing to do.

    Bash runs it as one script with `set -e`, with packages and without. Batch itself gives a command no
    shell, so `exit 3` would be the name of a program.
    """
    script = ["set -e"]
    if spec.apt or spec.java:
        local, other = _check_packages(spec), _install_packages(spec)
        script.append(f'if [ -n "${{{LOCAL_NODE}:-}}" ]; then {local}; else {other}; fi')
    if spec.start_command is not None:
        script.append(spec.start_command)
    return f"/bin/bash -c {shlex.quote('; '.join(script))}" if len(script) > 1 else None


def _install_packages(spec: PoolSpec) -> str:
    names = shlex.join([*_java_packages(spec), *spec.apt])
    install = f"{_APT} install --no-install-recommends {names}"
    return f"export DEBIAN_FRONTEND=noninteractive; {_UPDATE}; {install}"


def _check_packages(spec: PoolSpec) -> str:
    """Return a script that fails, and says how to install by hand what is missing."""
    checks = [_PRESENT, "missing="]
    if spec.java:
        (package,) = _java_packages(spec)
        checks += [_JAVA_PRESENT, f'java_present {int(spec.java)} || missing="$missing {package}"']
    for name in spec.apt:
        package, _, version = name.partition("=")
        checks.append(f'present {shlex.quote(package)} {shlex.quote(version)} || missing="$missing {name}"')
    told = (
        "the local cloud installs nothing on this machine, where these packages are missing:$missing; "
        "install them by hand (on Debian and Ubuntu: sudo apt-get install$missing)"
    )
    return "; ".join([*checks, f'if [ -n "$missing" ]; then echo "{told}" >&2; exit 1; fi'])


def _java_packages(spec: PoolSpec) -> Iterator[str]:
    if spec.java is True:
        yield "default-jre-headless"
    elif spec.java:
        yield f"openjdk-{spec.java}-jre-headless"


def refusal(spec: PoolSpec, key: str, value: object, allowed: str) -> ConfigurationError:
    """Return the error for a field of a spec that cannot be used."""
    return ConfigurationError(f"pool {spec.id!r}: {key} is {value!r}; allowed: {allowed}")


def _check_count(spec: PoolSpec, key: str, least: int) -> None:
    value = getattr(spec, key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise refusal(spec, key, value, f"a whole number that is not negative, {least} or more")


def _check_list(spec: PoolSpec, key: str) -> None:
    values = getattr(spec, key)
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise refusal(spec, key, values, "a tuple or list of strings")
    for value in values:
        _check_pattern(spec, key, value)


def _check_requirements(spec: PoolSpec) -> None:
    wanted = spec.requirements
    if wanted is None:
        return
    if not isinstance(wanted, str | PurePath):
        if not isinstance(wanted, Sequence):
            raise refusal(spec, "requirements", wanted, 'a list of requirements, a file, or "current"')
        _check_list(spec, "requirements")
    elif spec.pip:
        allowed = "a list beside pip, which is another name for it; or write all into the file"
        raise refusal(spec, "requirements", wanted, allowed)
    elif not str(wanted).strip():
        raise refusal(spec, "requirements", wanted, 'a list of requirements, a file, or "current"')


def required(spec: PoolSpec) -> str | PurePath | tuple[str, ...] | None:
    """Return what a spec requires, with `pip`, the other name of it; None: it does not say."""
    if isinstance(spec.requirements, str | PurePath):
        return spec.requirements
    if spec.requirements is None and not spec.pip:
        return None
    return tuple(dict.fromkeys((*spec.pip, *(spec.requirements or ()))))


def _check_size(spec: PoolSpec) -> None:
    """Refuse a size that is neither fixed nor elastic."""
    low_spot, high_spot = _spot_range(spec)
    share = spec.dedicated_share
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0.0 <= share <= 1.0:
        raise refusal(spec, "dedicated_share", share, "a number from 0 to 1")
    if spec.max_nodes is None:
        if spec.min_nodes is not None:
            raise refusal(spec, "min_nodes", spec.min_nodes, "None without max_nodes, which is not given")
        if isinstance(spec.spot, tuple):
            raise refusal(spec, "spot", spec.spot, "a range in an elastic pool alone: give max_nodes")
        return
    if spec.nodes is not None:
        allowed = "None beside max_nodes: a pool has a fixed size, or grows from min_nodes to max_nodes"
        raise refusal(spec, "nodes", spec.nodes, allowed)
    if (spec.min_nodes or 0) > spec.max_nodes:
        raise refusal(spec, "min_nodes", spec.min_nodes, f"at most max_nodes, which is {spec.max_nodes}")
    if low_spot > high_spot:
        raise refusal(spec, "spot", spec.spot, "the least, then the most")
    if not spec.max_nodes and not high_spot:
        raise refusal(spec, "max_nodes", 0, "1 or more, where there are no spot nodes")


def _spot_range(spec: PoolSpec) -> tuple[int, int]:
    counts = spec.spot if isinstance(spec.spot, tuple | list) else (0, spec.spot)
    whole = all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in counts)
    if len(counts) != 2 or not whole:
        raise refusal(spec, "spot", spec.spot, "a whole number that is not negative, or two of them")
    return counts[0], counts[1]


def _check_pattern(spec: PoolSpec, key: str, value: Any) -> None:
    pattern, allowed = _PATTERNS[key]
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise refusal(spec, key, value, allowed)


def _check_start(spec: PoolSpec) -> None:
    if spec.start_user not in ("admin", "user"):
        raise refusal(spec, "start_user", spec.start_user, '"admin" or "user"')
    if spec.start_user != "admin" and (spec.apt or spec.java):
        raise refusal(spec, "start_user", spec.start_user, '"admin", for packages are to be installed')
    command = spec.start_command
    if command is not None and (not isinstance(command, str) or not command.strip()):
        raise refusal(spec, "start_command", command, "a command line, or None")
    if not isinstance(spec.environment, Mapping):
        raise refusal(spec, "environment", spec.environment, "a dict from names to strings")
    for name, value in spec.environment.items():
        if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None:
            raise refusal(spec, "environment", name, "names of letters, digits and '_', no digit first")
        if not isinstance(value, str) or "\0" in value:
            raise refusal(spec, f"environment[{name!r}]", type(value).__name__, "a string")


def _name(image: Image | SupportedImage) -> tuple[str, str, str]:
    return image.publisher.lower(), image.offer.lower(), image.sku.lower()
