"""What a program may see of the file system: the standard library, the shared libraries it needs, a few devices; nothing else."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass

from posttrain.rewards.sandbox.linux import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    pivot_root,
    unmount,
)

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
LINKS = ("/lib", "/lib64")
PACKAGES = ("site-packages", "dist-packages")
STAGE = "/tmp"  # only a place to mount on: what is there comes back
TEMPORARY = "/tmp"
WORLD = 0o755


@dataclass(frozen=True)
class Visible:
    """readable: files and folders, as they are named. hidden: folders below them that must not be seen (installed packages)."""

    readable: tuple[str, ...]
    hidden: tuple[str, ...]


def visible() -> Visible:
    """Read once, after the modules that load shared libraries: their folders are taken from this process."""
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    libraries = _library_folders()
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    packages |= {os.path.join(folder, name) for folder in standard for name in PACKAGES} | {"/usr/lib/python3/dist-packages"}
    return Visible(tuple(sorted({*standard, *libraries, *FILES, *DEVICES})), tuple(sorted(packages)))


def _library_folders() -> set[str]:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line and "/" in line}
    return {os.path.dirname(path) for path in mapped}


def enter_small_root(seen: Visible) -> None:
    """Replaces the root of this mount namespace by a read-only one that holds only what is visible, and an empty /tmp."""
    sources = {path: os.path.realpath(path) for path in seen.readable if os.path.exists(path)}
    links = {path: os.readlink(path) for path in LINKS if os.path.islink(path)}
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", STAGE, "tmpfs", MS_NOSUID, "mode=0755,size=1m")
    os.mkdir(f"{STAGE}/old", WORLD)
    os.mkdir(f"{STAGE}/new", WORLD)
    pivot_root(STAGE, f"{STAGE}/old")
    os.chdir("/")
    _fill("/new", sources, links)
    for path in seen.hidden:
        if os.path.isdir(f"/new{path}"):
            mount("tmpfs", f"/new{path}", "tmpfs", MS_RDONLY | MS_NOSUID, "mode=0755,size=4k")
    mount("/new", "/new", None, MS_BIND | MS_REC)
    os.mkdir("/new/old", 0)
    pivot_root("/new", "/new/old")
    os.chdir("/")
    unmount("/old")
    os.rmdir("/old")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def _fill(root: str, sources: dict[str, str], links: dict[str, str]) -> None:
    os.mkdir(root + TEMPORARY, WORLD)
    for path, target in links.items():
        os.symlink(target, root + path)
    for path in sorted(sources, key=len):
        source, target = f"/old{sources[path]}", root + path
        if not os.path.exists(target):
            _make_place(source, target)
        mount(source, target, None, MS_BIND | MS_REC)
        device = path.startswith("/dev/")
        mount(None, target, None, MS_REMOUNT | MS_BIND | MS_NOSUID | (MS_NOEXEC if device else MS_RDONLY | MS_NODEV))


def _make_place(source: str, target: str) -> None:
    os.makedirs(target if os.path.isdir(source) else os.path.dirname(target), WORLD, exist_ok=True)
    if not os.path.isdir(source):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def mount_temporary(megabytes: int, uid: int, gid: int) -> None:
    """A fresh /tmp in memory, of bounded size, that ends with this mount namespace."""
    options = f"mode=0700,size={megabytes}m,nr_inodes=4096,uid={uid},gid={gid}"
    mount("tmpfs", TEMPORARY, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
