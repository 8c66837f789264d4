"""Config groups and their options, read from the YAML folders without importing Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import ConfigError, Problem


@dataclass(frozen=True)
class Option:
    """One choice of a config group: `name`, the file it comes from and its one-line description."""

    name: str
    path: Path
    description: str


def config_dir() -> Path:
    """The folder of the built-in config groups: inside the installed package, else beside it in a source tree.

    Raises:
        ConfigError: neither exists, so the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(Problem(str(package / "conf"), "the built-in configuration is missing", "install posttrain again"))


def search_path(config_dirs: Sequence[str | Path] = ()) -> tuple[Path, ...]:
    """The built-in folder followed by the user's own folders.

    Raises:
        ConfigError: a folder does not exist, or holds an option under a built-in option's name (which would never be used).
    """
    builtin = config_dir()
    extra = tuple(Path(folder).expanduser().resolve() for folder in config_dirs)
    missing = [Problem(f"--config-dir {folder}", "no such folder") for folder in extra if not folder.is_dir()]
    shadowed = [
        Problem(str(file), "a built-in option has the same name, so this file would never be used", "give it another name")
        for folder in extra
        for file in folder.rglob("*.yaml")
        if (builtin / file.relative_to(folder)).is_file()
    ]
    if missing or shadowed:
        raise ConfigError([*missing, *shadowed])
    return (builtin, *extra)


def groups(folders: Sequence[Path]) -> list[str]:
    """Names of all config groups (`model`, `model/peft`, ...), sorted; Hydra's own groups are not among them."""
    found = {file.parent.relative_to(folder).as_posix() for folder in folders for file in folder.rglob("*.yaml")}
    return sorted(name for name in found if name != "." and name.split("/")[0] != "hydra")


def state_of(folders: Sequence[Path]) -> int:
    """Another number when a file of these folders is another one, or has changed."""
    files = [(str(file), file.stat()) for folder in folders for file in folder.rglob("*.yaml")]
    return hash(tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)))


def options(folders: Sequence[Path], group: str) -> list[Option]:
    """Options of `group`, sorted by name; files that start with an underscore are shared parts, not options."""
    files = [file for folder in folders for file in (folder / group).glob("*.yaml") if not file.name.startswith("_")]
    return sorted((Option(file.stem, file, describe(file)) for file in files), key=lambda option: option.name)


def describe(file: Path) -> str:
    """The first comment line of a YAML file that is not a Hydra directive; empty if there is none."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
        if line.strip() and not line.startswith("#"):
            return ""
    return ""
