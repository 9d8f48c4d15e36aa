"""`make deb`: a package for Debian, in dist/. Needs dpkg-deb, and Debian's own Python for the wheel's tag.

    /usr/bin/smtpraft                          Debian's python3, isolated, with what follows
    /usr/lib/smtpraft/                         smtpraft and all it needs: Debian has these too old, or not at all
    /lib/systemd/system/smtpraft@.service      and .socket; nothing starts by itself: a node needs its settings first
    /usr/share/doc/smtpraft/examples/          what `deploy/` has
    /etc/smtpraft/                             empty: node-1.toml, secret, admin-token are the operator's

An upgrade leaves the nodes running on what they have loaded: the operator restarts them, one machine after the other.
Reproducible as the wheels are: SOURCE_DATE_EPOCH, else the last commit's time.
"""

from __future__ import annotations

import argparse
import email.utils
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from release.wheels import DIST, ROOT, TOOLS, Wrong, run

DEBIAN_PYTHON: Final = "/usr/bin/python3"
UNITS: Final = ("smtpraft@.service", "smtpraft@.socket")
NOT_NEEDED: Final = ("bin", "apsw/sqlite_extra_binaries", "aiosmtpd/docs", "aiosmtpd/tests", "aiosmtpd/qa")
PROGRAM: Final = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/lib/smtpraft")

from smtpraft.cli import main

sys.exit(main())
"""
CONTROL: Final = """\
Package: smtpraft
Version: {version}
Architecture: {architecture}
Maintainer: The authors of smtpraft <smtpraft@localhost.localdomain>
Installed-Size: {size_kib}
Depends: python3 (>= {python}), python3 (<< {next_python}), libc6 (>= 2.28)
Recommends: openssl
Suggests: haproxy, prometheus
Section: mail
Priority: optional
Description: highly available SMTP server
 Several nodes take mail together, and share one Raft log. A message is
 answered 250 only when it is synced to disk on a majority of them: a node
 that dies takes nothing with it, and the others deliver what it had accepted.
 .
 This package brings the Python libraries that smtpraft needs with it.
"""
POSTINST: Final = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    py3compile -p smtpraft /usr/lib/smtpraft || true
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload || true
    fi
fi
exit 0
"""
PRERM: Final = """\
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    if [ -d /run/systemd/system ]; then
        systemctl stop 'smtpraft@*.socket' 'smtpraft@*.service' || true
    fi
fi
py3clean -p smtpraft || true
find /usr/lib/smtpraft -name __pycache__ -type d -prune -exec rm -rf '{}' + || true
exit 0
"""
POSTRM: Final = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload || true
fi
exit 0
"""
COPYRIGHT: Final = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: smtpraft

Files: *
Copyright: 2026 the authors of smtpraft
License: Apache-2.0
 On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.
 The libraries under /usr/lib/smtpraft keep their licences in their *.dist-info.
"""
OVERRIDES: Final = """\
# The project has no address of its own.
smtpraft: bogus-mail-host *
smtpraft: bogus-mail-host-in-debian-changelog *
# Instances of a template are stopped by a pattern, which deb-systemd-invoke does not take.
smtpraft: maintainer-script-calls-systemctl *
# Debian 12 has these libraries too old, or not at all; they are this program's alone.
smtpraft: unusual-interpreter *
smtpraft: embedded-library *
smtpraft: hardening-no-fortify-functions *
smtpraft: unstripped-binary-or-object *
smtpraft: shared-library-lacks-prerequisites *
smtpraft: extra-license-file *
smtpraft: package-contains-documentation-outside-usr-share-doc *
smtpraft: no-manual-page *
"""


def python_of_debian() -> str:
    """Return the version of Debian's Python, as 3.11.

    Raises:
        Wrong: there is none, or it is not the one this runs on, so that the wheels would not fit.
    """
    question = "import sys; print('{}.{}'.format(*sys.version_info))"
    try:
        version = run(DEBIAN_PYTHON, "-c", question).strip()
    except OSError:
        raise Wrong(f"deb: no {DEBIAN_PYTHON} here; this needs Debian") from None
    here = "{}.{}".format(*sys.version_info)
    if version != here:
        raise Wrong(f"deb: {DEBIAN_PYTHON} is {version}, this runs on {here}: PYTHON=python{version} make deb")
    return version


def install(tree: Path, wheel: Path | None, epoch: str) -> str:
    """Put smtpraft and all it needs below `tree`/usr/lib/smtpraft; return smtpraft's version."""
    library = tree / "usr/lib/smtpraft"
    options = ("--disable-pip-version-check", "--no-compile", "-q", "--target", library)
    what = wheel if wheel is not None else ROOT
    environ = {"SOURCE_DATE_EPOCH": epoch, "SMTPRAFT_REQUIRE_EXTENSIONS": "1"}
    run(sys.executable, "-m", "pip", "install", *options, what, environ=environ)
    for name in NOT_NEEDED:
        shutil.rmtree(library / name, ignore_errors=True)
    for module in library.glob("smtpraft/**/*.so"):  # else it looks for libraries where this Python was built
        run(TOOLS / "patchelf", "--remove-rpath", module)
    share = library / "share"
    if share.is_dir():  # manual page and completions, which belong into the system's
        shutil.copytree(share, tree / "usr/share", dirs_exist_ok=True)
        shutil.rmtree(share)
    for page in (tree / "usr/share/man").rglob("*.1"):
        _gzip(page)
    zsh = tree / "usr/share/zsh/site-functions"
    if zsh.is_dir():
        zsh.rename(tree / "usr/share/zsh/vendor-completions")
    for link in library.glob("*.dist-info/direct_url.json"):
        link.unlink()  # the path that it was built in
    for record in library.glob("*.dist-info/RECORD"):
        record.unlink()  # of paths that are elsewhere now; dpkg has its own
    (version,) = re.findall(r"^Version: (.*)$", _metadata(library), re.MULTILINE)
    return str(version)


def _metadata(library: Path) -> str:
    (path,) = library.glob("smtpraft-*.dist-info/METADATA")
    return path.read_text("utf-8")


def _gzip(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
    path.unlink()


def furnish(tree: Path, version: str, epoch: str) -> None:
    """The program, the units, the papers."""
    program = tree / "usr/bin/smtpraft"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    units = tree / "lib/systemd/system"
    units.mkdir(parents=True)
    for name in UNITS:
        text = (ROOT / "deploy/systemd" / name).read_text("utf-8")
        (units / name).write_text(text.replace("/opt/smtpraft/bin/smtpraft", "/usr/bin/smtpraft"))
    (tree / "etc/smtpraft").mkdir(parents=True)
    papers = tree / "usr/share/doc/smtpraft"
    shutil.copytree(ROOT / "deploy", papers / "examples", ignore=shutil.ignore_patterns(".*", "systemd"))
    (papers / "copyright").write_text(COPYRIGHT)
    (papers / "NEWS.md").write_text((ROOT / "CHANGELOG.md").read_text("utf-8"))
    _gzip(papers / "NEWS.md")
    when = email.utils.formatdate(int(epoch))
    log = f"smtpraft ({version}) unstable; urgency=medium\n\n  * See NEWS.md.gz.\n\n"
    (papers / "changelog").write_text(f"{log} -- The authors of smtpraft <smtpraft@localhost.localdomain>  {when}\n")
    _gzip(papers / "changelog")
    overrides = tree / "usr/share/lintian/overrides/smtpraft"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(OVERRIDES)


def pack(tree: Path, version: str, python: str, epoch: str) -> Path:
    """Write the package's own files and pack it; return its path in dist/."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    for path in tree.rglob("*"):
        executable = path.is_dir() or path == tree / "usr/bin/smtpraft"
        path.chmod(0o755 if executable else 0o644)
    major, minor = python.split(".")
    architecture = run("dpkg", "--print-architecture").strip()
    control = tree / "DEBIAN"
    control.mkdir()
    facts = {
        "version": version,
        "architecture": architecture,
        "size_kib": sum(path.stat().st_size for path in files) // 1024,
        "python": python,
        "next_python": f"{major}.{int(minor) + 1}",
    }
    (control / "control").write_text(CONTROL.format_map(facts))
    sums = (
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
    )
    (control / "md5sums").write_text("".join(sums))
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        (control / name).write_text(text)
        (control / name).chmod(0o755)
    target = DIST / f"smtpraft_{version}_{architecture}.deb"
    DIST.mkdir(exist_ok=True)
    run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, target, environ={"SOURCE_DATE_EPOCH": epoch})
    return target


def find_wheel(python: str) -> Path | None:
    """Return the wheel for this Python that `make wheels` left in dist/, None if there is none."""
    tag = "cp" + python.replace(".", "")
    found = sorted(DIST.glob(f"smtpraft-*-{tag}-{tag}-manylinux*.whl"))
    machine = sysconfig.get_platform().replace("-", "_").partition("_")[2]
    return next((wheel for wheel in reversed(found) if machine in wheel.name and zipfile.is_zipfile(wheel)), None)


def main() -> int:
    """Make it, and say what it is."""
    parser = argparse.ArgumentParser(prog="make deb ARGS=…", description="A package for Debian, in dist/.")
    parser.add_argument(
        "--wheel", type=Path, help="the wheel to pack; default: dist/'s for this Python, else the source"
    )
    parser.add_argument("--source", action="store_true", help="pack the source as it is, whatever is in dist/")
    arguments = parser.parse_args()
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct").strip()
    if shutil.which("dpkg-deb") is None:
        raise Wrong("deb: no dpkg-deb here; apt-get install dpkg")
    python = python_of_debian()
    wheel = arguments.wheel or (None if arguments.source else find_wheel(python))
    with tempfile.TemporaryDirectory(prefix="smtpraft-deb-") as name:
        tree = Path(name) / "tree"
        tree.mkdir(mode=0o755)
        version = install(tree, wheel, epoch)
        furnish(tree, version, epoch)
        target = pack(tree, version, python, epoch)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    origin = wheel.name if wheel else "the source"
    print(f"deb: {digest[:16]}  {target.stat().st_size:>9}  dist/{target.name}, of {origin}")
    if shutil.which("lintian"):
        checked = subprocess.run(
            ["lintian", "--allow-root", "--fail-on", "error,warning", target],
            capture_output=True,
            text=True,
            check=False,
        )
        print(checked.stdout, end="")
        if checked.returncode:
            raise Wrong("deb: lintian is not content")
        print("deb: lintian has no error and no warning")
    else:
        print("deb: not seen by lintian: it is not installed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
