"""The reference of the settings, and the commented configuration file."""

from __future__ import annotations

from pathlib import Path

from batchflow.config.loader import load_settings
from batchflow.config.reference import groups, template


def test_every_setting_is_described(tmp_path: Path) -> None:
    """No setting is without a meaning, and every number that is a duration or a size has its unit."""
    settings = [each for group in groups() for each in group.settings]
    assert [each.name for each in settings if not each.meaning] == []
    numbers = [each for each in settings if type(each.default) in (int, float)]
    assert [each.name for each in numbers if not each.unit] == []


def test_a_commented_file_reads_as_the_defaults(tmp_path: Path) -> None:
    """And as what it was given."""
    path = tmp_path / "batchflow.toml"
    path.write_text(template({}))
    assert load_settings(path, environment={}) == load_settings(environment={})
    path.write_text(template({"batch.key": 'a"\\b', "pool.nodes": 7}))
    settings = load_settings(path, environment={})
    assert (settings.batch.key, settings.pool.nodes) == ('a"\\b', 7)
