"""`make wheels`: all that a release consists of, in `dist/`, each piece tried as its users will.

    smtpraft-V-cp3xx-…-manylinux….whl   one for each CPython that is here (or SMTPRAFT_PYTHONS="python3.11 …")
    smtpraft-V-cp312-abi3-….whl         for every CPython from 3.12 on, made by the oldest of these that is here
    smtpraft-V-py3-none-any.whl         without the compiled half, for all others
    smtpraft-V.tar.gz                   the source; every wheel is built from it, in a tree of its own
    smtpraft-V.cdx.json                 what an installation consists of (CycloneDX)

Reproducible: SOURCE_DATE_EPOCH (the last commit's time, unless set) is the only date in a file; --twice proves it.
--quick leaves the unit tests out. Whatever is not as it should be ends the run with a sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import smtplib
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
DIST: Final = ROOT / "dist"
WANTED: Final = ("3.11", "3.12", "3.13")
ABI3_SINCE: Final = (3, 12)
GLIBC_MAX: Final = (2, 28)
NOT_ABI3: Final = ("smtpraft/smtp/_fastscan", "smtpraft/consensus/")  # see setup.py: EXTENSIONS, CORE
TOOLS: Final = Path(sysconfig.get_path("scripts"))


class Wrong(SystemExit):
    """Something is not as it should be."""


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter, and its version: (3, 12)."""

    path: str
    version: tuple[int, int]

    @property
    def name(self) -> str:
        return "{}.{}".format(*self.version)


def run(*command: str | Path, cwd: Path = ROOT, environ: Mapping[str, str] | None = None) -> str:
    """Run a tool; return what it printed.

    Raises:
        Wrong: it failed; with its words.
    """
    # The caller's own settings of a build must not get into this one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SMTPRAFT_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | dict(environ or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Wrong(f"wheels: {' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def pythons() -> list[Python]:
    """Return the interpreters to build for: SMTPRAFT_PYTHONS, or what PATH and pyenv have of `WANTED`."""
    named = os.environ.get("SMTPRAFT_PYTHONS", "").replace(",", " ").split()
    candidates = named or [
        *(f"python{version}" for version in WANTED),
        *map(str, sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python3"))),
    ]
    found: dict[tuple[int, int], Python] = {}
    for candidate in candidates:
        question = "import sys, venv, ensurepip; print(*sys.version_info[:2], sys.implementation.name)"
        try:
            answer = subprocess.run(
                [candidate, "-c", question], capture_output=True, text=True, check=True
            ).stdout.split()
        except (OSError, subprocess.CalledProcessError):
            if named:
                raise Wrong(f"wheels: {candidate} of SMTPRAFT_PYTHONS is no Python with venv and ensurepip") from None
            continue
        version = (int(answer[0]), int(answer[1]))
        if answer[2] == "cpython" and (named or "{}.{}".format(*version) in WANTED):
            found.setdefault(version, Python(candidate, version))
    if not found:
        raise Wrong(f"wheels: no CPython {', '.join(WANTED)} here; install one, or name it in SMTPRAFT_PYTHONS")
    return [found[version] for version in sorted(found)]


# ---- build


def export(target: Path) -> None:
    """Copy what belongs to the project, and nothing that lies about."""
    files = run("git", "ls-files", "-co", "--exclude-standard").splitlines()
    for name in files:
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)


def make_sdist(work: Path, epoch: str) -> Path:
    """Build the source archive; setuptools dates its files by the clock, so it is packed again."""
    tree = work / "sdist-tree"
    export(tree)
    run(
        sys.executable, "-m", "build", "--sdist", "--outdir", work / "sdist", tree, environ={"SOURCE_DATE_EPOCH": epoch}
    )
    (made,) = (work / "sdist").glob("*.tar.gz")
    packed = io.BytesIO()
    with tarfile.open(made) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            content = old.extractfile(member)
            member.mtime, member.uid, member.gid, member.uname, member.gname = int(epoch), 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, content)
    target = work / "out" / made.name
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=int(epoch)) as zipped:
        zipped.write(packed.getvalue())
    return target


def make_wheel(work: Path, sdist: Path, python: Python, epoch: str, **environ: str) -> Path:
    """Build one wheel from the source archive, with isolation, in a tree that is new."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        place = Path(name)
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        (tree,) = place.iterdir()
        run(
            *(python.path, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "-w", place / "w", tree),
            environ={"SOURCE_DATE_EPOCH": epoch} | environ,
        )
        (made,) = (place / "w").glob("*.whl")
        if "-linux_" not in made.name:
            check_contents(made)
            return Path(shutil.move(made, work / "out" / made.name))
        run(
            *(TOOLS / "auditwheel", "repair", "-w", place / "r", made),
            environ={"SOURCE_DATE_EPOCH": epoch, "PATH": f"{TOOLS}:{os.environ['PATH']}"},
        )
        (repaired,) = (place / "r").glob("*.whl")
        check_contents(repaired)
        return Path(shutil.move(repaired, work / "out" / repaired.name))


def make_all(work: Path, found: Sequence[Python], epoch: str) -> dict[Path, list[Python]]:
    """Build everything; return the wheels, each with the interpreters to try it with."""
    sdist = make_sdist(work, epoch)
    made: dict[Path, list[Python]] = {}
    for python in found:
        say(f"native wheel for {python.name}")
        made[make_wheel(work, sdist, python, epoch, SMTPRAFT_REQUIRE_EXTENSIONS="1")] = [python]
    later = [python for python in found if python.version >= ABI3_SINCE]
    if later:
        say(f"abi3 wheel by {later[0].name}")
        wheel = make_wheel(work, sdist, later[0], epoch, SMTPRAFT_REQUIRE_EXTENSIONS="1", SMTPRAFT_ABI3="1")
        made[wheel] = later
    else:
        say("no abi3 wheel: it takes CPython 3.12 or later")
    say("wheel without the compiled half")
    made[make_wheel(work, sdist, found[-1], epoch, SMTPRAFT_NO_EXTENSIONS="1")] = [found[-1]]
    return made


# ---- check


def extension_names() -> list[str]:
    """Return the compiled modules, as their sources name them: `smtpraft/_fastlog`, `smtpraft/consensus/raft`."""
    tracked = run("git", "ls-files", "-co", "--exclude-standard", "smtpraft/*.pyx", "smtpraft/*.pxd").splitlines()
    return sorted({name.rpartition(".")[0] for name in tracked})


def check_contents(wheel: Path) -> None:
    """One library for each compiled module, or none of any; types for all; no leftovers of the build.

    Raises:
        Wrong: with the file's name.
    """
    names = zipfile.ZipFile(wheel).namelist()
    libraries = sorted(name.partition(".")[0] for name in names if name.endswith(".so"))
    wanted = [] if "none-any" in wheel.name else extension_names()
    if "-abi3-" in wheel.name:
        wanted = [name for name in wanted if not name.startswith(NOT_ABI3)]
    if libraries != wanted:
        raise Wrong(f"wheels: {wheel.name} has libraries {libraries}, wanted is one each of {wanted}")
    if "smtpraft/py.typed" not in names:
        raise Wrong(f"wheels: {wheel.name} lacks smtpraft/py.typed")
    for name in extension_names():
        if f"{name}.pyi" not in names and f"{name}.py" not in names:
            raise Wrong(f"wheels: {wheel.name} lacks {name}.pyi")
    for name in names:
        if name.endswith((".c", ".h", ".pyx", ".pxi", ".pxd", ".pyc")) or name.startswith(("tests", "benches")):
            raise Wrong(f"wheels: {wheel.name} has {name}, which is for builds")
    for name in ("man/man1/smtpraft.1", "bash-completion/completions/smtpraft", "zsh/site-functions/_smtpraft"):
        if not any(each.endswith(f".data/data/share/{name}") for each in names):
            raise Wrong(f"wheels: {wheel.name} lacks share/{name}")
    if "none-any" not in wheel.name:
        glibc = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)", wheel.name)]
        if not glibc or min(glibc) > GLIBC_MAX:
            raise Wrong(
                f"wheels: {wheel.name} needs a newer C library than 2.28: it would not install on older systems"
            )


def check_all(files: Sequence[Path]) -> None:
    """What others check too."""
    run(TOOLS / "validate-pyproject", "pyproject.toml")
    run(TOOLS / "twine", "check", "--strict", *files)
    for wheel in files:
        if wheel.suffix == ".whl":
            run(TOOLS / "check-wheel-contents", wheel)
            if "-abi3-" in wheel.name:
                run(TOOLS / "abi3audit", "--strict", wheel)


# ---- try


@contextlib.contextmanager
def installed(work: Path, wheel: Path, python: Python, *groups: str) -> Iterator[tuple[Path, Path]]:
    """Install a wheel into a fresh environment; yield its `bin` and an empty directory to work in."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        place = Path(name)
        run(python.path, "-m", "venv", place / "venv")
        binaries = place / "venv" / "bin"
        pip: list[str | Path] = [
            binaries / "python",
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-warn-script-location",
        ]
        run(*pip, "--upgrade", "pip>=25.1")
        run(*pip, "--only-binary", ":all:", wheel)
        for group in groups:
            run(*pip, "--group", f"{ROOT / 'pyproject.toml'}:{group}")
        (place / "here").mkdir()
        yield binaries, place / "here"


def try_wheel(work: Path, wheel: Path, python: Python, *, quick: bool) -> tuple[str, float, str]:
    """Return what `smtpraft version` says, its time in milliseconds (least of five), and the unit tests' last line.

    Raises:
        Wrong: the wheel does not do what it is for.
    """
    compiled = "none-any" not in wheel.name
    with installed(work, wheel, python, *(() if quick else ("test",))) as (binaries, here):
        said = run(binaries / "smtpraft", "version", cwd=here).strip()
        facts = json.loads(run(binaries / "smtpraft", "version", "-w", "json", cwd=here))
        parts = set(facts["compiled_parts"].values())
        expected = {False} if not compiled else {True, False} if "-abi3-" in wheel.name else {True}
        if parts != expected or facts["compiled"] is not compiled:
            raise Wrong(f"wheels: {wheel.name} on {python.name} says {said!r}")
        took = []
        for _ in range(5):
            began = time.perf_counter()
            run(binaries / "python", "-c", "import smtpraft.fastlog, smtpraft.cluster", cwd=here)
            took.append(time.perf_counter() - began)
        round_trip(binaries, here)
        tested = "not run"
        if not quick:
            for name in ("tests", "benches", "docs", "deploy"):
                shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copyfile(ROOT / "pyproject.toml", here / "pyproject.toml")
            # The map of the source tree is no matter of an installation.
            command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--ignore=tests/unit/test_map.py", "tests/unit")
            tested = run(binaries / "python", *command, cwd=here).strip().splitlines()[-1]
        return said, min(took) * 1000, tested


def round_trip(binaries: Path, here: Path) -> None:
    """One node, one message in, the same message in a Maildir.

    Raises:
        Wrong: it does not arrive.
    """
    environ = os.environ | {"SMTPRAFT_SMTP__LISTEN": "127.0.0.1:0", "SMTPRAFT_ADMIN__LISTEN": "127.0.0.1:0"}
    log = here / "log"
    with log.open("wb") as file:
        node = subprocess.Popen([binaries / "smtpraft", "serve"], cwd=here, env=environ, stderr=file)
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(r" serving .* smtp=127\.0\.0\.1:(\d+)", log.read_text())):
            if time.monotonic() > deadline or node.poll() is not None:
                raise Wrong(f"wheels: no node came up: {log.read_text()}")
            time.sleep(0.05)
        with smtplib.SMTP("127.0.0.1", int(found[1]), timeout=30) as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: round\r\n\r\ntrip\r\n")
        mailbox = here / "smtpraft-data" / "mail" / "example.org" / "b" / "new"
        while not (mailbox.is_dir() and list(mailbox.iterdir())):
            if time.monotonic() > deadline:
                raise Wrong(f"wheels: the message did not arrive: {log.read_text()}")
            time.sleep(0.05)
        (message,) = mailbox.iterdir()
        if not message.read_bytes().endswith(b"trip\n") and not message.read_bytes().endswith(b"trip\r\n"):
            raise Wrong(f"wheels: what arrived is another message: {message.read_bytes()!r}")
        node.terminate()
        if node.wait(30):
            raise Wrong(f"wheels: the node ended with {node.returncode}: {log.read_text()}")
    finally:
        node.kill()
        node.wait()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def say(text: str) -> None:
    print(f"wheels: {text}", flush=True)


def main() -> int:
    """Make, check, try, and say what there is."""
    parser = argparse.ArgumentParser(
        prog="make wheels ARGS=…", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument("--quick", action="store_true", help="do not run the unit tests on each")
    parser.add_argument("--twice", action="store_true", help="build all a second time: every file must be the same")
    arguments = parser.parse_args()
    began = time.monotonic()
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    found = pythons()
    say(f"for {', '.join(f'{python.name} ({python.path})' for python in found)}; dated {epoch}")
    with tempfile.TemporaryDirectory(prefix="smtpraft-wheels-") as name:
        work = Path(name)
        made = make_all(work, found, epoch)
        files = sorted((work / "out").iterdir())
        check_all(files)
        say("checked: contents, twine, check-wheel-contents, abi3audit, validate-pyproject")
        for wheel, users in made.items():
            for python in users:
                said, import_ms, tested = try_wheel(work, wheel, python, quick=arguments.quick)
                size_kb = wheel.stat().st_size // 1024
                say(f"{wheel.name} {size_kb} KiB, on {python.name}: {said}; import {import_ms:.0f} ms; mail; {tested}")
        if arguments.twice:
            again = work / "again"
            again.mkdir()
            os.environ["CCACHE_DISABLE"] = "1"  # or the same file is found, instead of made
            make_all(again, found, epoch)
            for file in files:
                if digest(file) != digest(again / "out" / file.name):
                    raise Wrong(f"wheels: {file.name} is another file when it is built again")
            say(f"reproducible: {len(files)} files built twice, every one the same")
        with installed(work, next(iter(made)), found[0]) as (binaries, _):
            bill = work / "out" / (files[-1].name.removesuffix(".tar.gz") + ".cdx.json")
            options = ("--output-reproducible", "--of", "JSON", "-o", bill)
            run(TOOLS / "cyclonedx-py", "environment", *options, binaries / "python")
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(work / "out", DIST)
    for file in sorted(DIST.iterdir()):
        say(f"{digest(file)[:16]}  {file.stat().st_size:>9}  dist/{file.name}")
    say(f"done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
