"""File systems of one's own under a node's data directory: small ones, and ones that can be frozen. Needs root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final, Self

import pytest

MIB: Final = 1024 * 1024


def need_root() -> None:
    """Skip a test that may not mount here."""
    if os.geteuid() != 0:
        pytest.skip("mounts file systems: needs root")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


class Mounts:
    """`with Mounts() as mounts`: what was mounted is unmounted at the end, thawed first, whoever still uses it."""

    def __init__(self) -> None:
        self._mounted: list[Path] = []
        self._frozen: set[Path] = set()

    def __enter__(self) -> Self:
        need_root()
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self._frozen):
            self.thaw(path)
        for path in reversed(self._mounted):
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)

    def tmpfs(self, path: Path, options: str) -> None:
        """Mount memory at `path`: `size=96m`, `nr_inodes=200`."""
        path.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", options, "smtpraft-test", path)
        self._mounted.append(path)

    def ext4(self, path: Path, image: Path, size_bytes: int) -> None:
        """Mount a new ext4 in the file `image` at `path`."""
        path.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(size_bytes)
        run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        run("mount", "-o", "loop,errors=remount-ro", image, path)
        self._mounted.append(path)

    def fail(self, path: Path) -> None:
        """Let an ext4 find itself in error, as it does when its disk fails: it is read-only from here to `repair`.

        `mount -o remount,ro` is no way to get there: the kernel refuses while a file is open for writing.
        """
        source = subprocess.run(
            ["findmnt", "--noheadings", "--output", "SOURCE", str(path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("this kernel's ext4 cannot be told to fail")
        trigger.write_text("1")

    def repair(self, path: Path, image: Path) -> None:
        """Check the file system, which nobody uses any more, and mount it again."""
        run("umount", path)
        done = subprocess.run(["e2fsck", "-y", "-f", str(image)], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout
        run("mount", "-o", "loop,errors=remount-ro", image, path)

    def freeze(self, path: Path) -> None:
        """Let every write to it hang until `thaw`."""
        self._frozen.add(path)
        run("fsfreeze", "--freeze", path)

    def thaw(self, path: Path) -> None:
        """Let it go on."""
        run("fsfreeze", "--unfreeze", path)
        self._frozen.discard(path)


def fill(directory: Path) -> Path:
    """Take all the room there is; return the file that does."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


def take_inodes(directory: Path) -> list[Path]:
    """Take all inodes there are; return the files that do."""
    taken: list[Path] = []
    try:
        while True:
            path = directory / f"inode-{len(taken)}"
            path.touch()
            taken.append(path)
    except OSError:
        return taken
