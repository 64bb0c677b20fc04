"""Wheels that a test makes by itself, so that it needs no index of packages."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, text: str, *requires: str) -> Path:
    """Write a wheel with one module of the distribution's name into a folder."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    tag = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{name}.py": text, f"{info}/METADATA": metadata, f"{info}/WHEEL": tag}
    record = "".join(f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        for path, content in files.items():
            out.writestr(path, content)
    return wheel


def zip_of(path: Path, files: dict[str, bytes], modes: dict[str, int] | None = None) -> tuple[Path, str]:
    """Write a zip file, as a wheel is one; return it and its hash. `modes`: of some of its files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED if len(content) > 20 else zipfile.ZIP_STORED
            member.external_attr = (modes or {}).get(name, 0o100644) << 16
            out.writestr(member, content)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def requirements_file(folder: Path, *requirements: str) -> Path:
    """Write a requirements file that finds the wheels of its folder, and no others."""
    file = folder / "requirements.txt"
    file.write_text("\n".join(("--no-index", f"--find-links {folder}", *requirements)) + "\n")
    return file


def make_source(folder: Path, name: str, version: str, build: str) -> Path:
    """Write a source distribution; `build` is the body of the function that builds its wheel in `out`."""
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
        "backend.py": "def build_wheel(out, config_settings=None, metadata_directory=None):\n"
        + "".join(f"    {line}\n" for line in build.splitlines()),
    }
    source = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(source, "w:gz") as out:
        for path, content in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content.encode()))
    return source


def index_folder(folder: Path, *, yanked: str | None = None) -> str:
    """Make an index of packages from the wheels of a folder; return the option that names it.

    `yanked`: the version of each package that was yanked.
    """
    for wheel in folder.glob("*.whl"):
        name, version, _ = wheel.name.split("-", 2)
        page = folder / "simple" / name.replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        mark = ' data-yanked="it loses digits"' if version == yanked else ""
        with page.open("a") as out:
            out.write(f'<a href="{wheel.as_uri()}"{mark}>{wheel.name}</a><br>\n')
    return f"--index-url {(folder / 'simple').as_uri()}"
