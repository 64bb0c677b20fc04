"""A reference of the settings, and a configuration file to begin with, made from the docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from batchflow.settings import Settings, toml_value
from batchflow.support.frozen import frozen

_WIDTH: Final = 100
_OWN: Final = "batchflow."
_HEAD: Final = """\
# batchflow's configuration. What is commented out has its default.
# Over this file go a profile ([profiles.NAME.batch] and so on, chosen by --profile NAME) and the
# environment (BATCHFLOW_<GROUP>_<KEY>, for example BATCHFLOW_BATCH_KEY). It holds secrets: keep it out of
# version control.
"""
_TAIL: Final = """\
# Pools and jobs can be described here; `batchflow pool ensure` makes them so.
#
# [pools.work]
# nodes = 4
# files = ["tasks/"]
# requirements = ["numpy>=2"]
#
# [jobs.nightly]
# pool = "work"
# command = "square.py"
# timeout = 600
# retries = 2
#
# [profiles.small.pool]
# nodes = 1
"""


@frozen
class Setting:
    """A setting and its description."""

    name: str
    """`group.key`, or `target`."""
    default: Any
    unit: str
    """"" where it has none."""
    meaning: str


@frozen
class SettingsGroup:
    """A table of the file."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def groups() -> list[SettingsGroup]:
    """Return every setting, in the order of the file."""
    defaults = Settings()
    texts = docstrings(Settings)
    target = Setting("target", defaults.target, "", texts["target"])
    found = [SettingsGroup("", "", (target,))]
    for item in fields(Settings):
        values = getattr(defaults, item.name)
        if item.name != "target":
            found.append(
                SettingsGroup(item.name, _flat(type(values).__doc__), tuple(_settings(item.name, values)))
            )
    return found


def reference() -> str:
    """Return a table in Markdown."""
    lines = ["| setting | default | unit | meaning |", "|---|---|---|---|"]
    for group in groups():
        for each in group.settings:
            default = "" if each.default is None else f"`{_shown(each.default)}`"
            meaning = each.meaning.replace("|", "\\|")
            lines.append(f"| `{each.name}` | {default} | {each.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


def template(values: Mapping[str, Any], pools: str = "") -> str:
    """Return a commented file, in which the settings that `values` names (`group.key`) have these values."""
    parts = [_HEAD]
    for group in groups():
        if group.name:
            parts += [*_comment(group.meaning), f"[{group.name}]"]
        for each in group.settings:
            parts += _comment(f"{each.meaning}{f' [{each.unit}]' if each.unit else ''}")
            key = each.name.rpartition(".")[2]
            if each.name in values:
                parts.append(f"{key} = {toml_value(values[each.name])}")
            else:
                parts.append(f"# {key} = {'' if each.default is None else toml_value(each.default)}".rstrip())
        parts.append("")
    return "\n".join([*parts, pools or _TAIL])


def _settings(group: str, values: Any) -> Iterator[Setting]:
    texts = docstrings(type(values))
    hints = typing.get_type_hints(type(values), include_extras=True)
    for item in fields(values):
        unit = next(_units(hints[item.name]), "")
        default = getattr(values, item.name)
        yield Setting(f"{group}.{item.name}", default, unit, texts.get(item.name, ""))


def _units(hint: Any) -> Iterator[str]:
    """Yield the units of an annotation, and of its options."""
    yield from getattr(hint, "__metadata__", ())
    if typing.get_origin(hint) is typing.Union:
        for option in typing.get_args(hint):
            yield from _units(option)


def docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the text under each field of a class and its bases, or under each member of an enumeration."""
    found: dict[str, str] = {}
    for each in kind.__mro__:
        if each.__module__.startswith(_OWN):
            found |= _own_docstrings(each)
    return found


def _own_docstrings(kind: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for item, after in zip(tree.body, tree.body[1:], strict=False):
        match item, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                found[name] = _flat(text)
    return found


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
