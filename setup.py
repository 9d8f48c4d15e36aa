"""The extensions, and the files made from the command line's grammar; everything that is static is in pyproject.toml.

SMTPRAFT_NO_EXTENSIONS=1       builds the plain-Python half only.
SMTPRAFT_REQUIRE_EXTENSIONS=1  makes a failing compiler an error; without it the plain half is installed alone.
SMTPRAFT_ABI3=1                one wheel for CPython 3.12 and later, at some cost where Python objects are made.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

# Module, what else its .pyx is made of, how hard the compiler is to try, is the limited API enough for it: if not, the
# abi3 wheel has its plain twin. A line here is all that an extension needs, and one in MANIFEST.in if its directory is
# new.
EXTENSIONS = (
    (
        "smtpraft._fastlog",
        ("smtpraft/_fastcodec.pxi", "smtpraft/_fastcommands.pxi", "smtpraft/_fastlog.h"),
        "-O3",
        True,
    ),
    (
        "smtpraft.smtp._fastscan",
        ("smtpraft/smtp/_fastscan.h",),
        "-O3",
        False,
    ),  # it makes bytes longer in place
    ("smtpraft.storage._fastwal", ("smtpraft/storage/_fastwal.h", "smtpraft/_fastlog.h"), "-O2", True),
    ("smtpraft.cli.bench._fastload", (), "-O2", True),
)

# The consensus core, and the SMTP session: plain Python, compiled as it is, with the types that the .pxd beside each
# module gives. All of it or none: the modules call each other in C. No `annotation_typing`: an annotation is for people
# and mypy, and `int` there is any integer. `overflowcheck`: what does not fit into 64 bits is an error, never a smaller
# number. Not in the abi3 wheel: through the limited API it is no faster than the plain half.
CORE = ("follower", "leader", "messages", "progress", "raft", "raftlog", "rawnode", "tracker")
SESSION = ("fast", "memory", "protocol")
CORE_DIRECTIVES = {"annotation_typing": False, "overflowcheck": True, "initializedcheck": False}
# Of messages.py, whose classes are made many times in every turn: keep some that are free, and tell the garbage
# collector of none, for none of them is in a cycle. Cython wants both said of a class, and passes them over in a .pxd.
MESSAGES_DIRECTIVES = CORE_DIRECTIVES | {"freelist": 64, "no_gc": True}
ABI3 = 0x030C0000  # the first with the whole of the buffer interface and of vectorcall in the limited API


def asked_for(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


# What the modules of a source tree were compiled from, by its SHA-256: tests/conftest.py declines to test others.
MADE_OF = Path("build", "compiled-from.json")
SOURCE_SUFFIXES = (".pyx", ".pxi", ".pxd", ".h")

METADATA = {"egg_info", "dist_info", "sdist"}

REQUIRED = asked_for("SMTPRAFT_REQUIRE_EXTENSIONS")


class BuildExtensions(build_ext):
    """Says what is missing, if it must not be; compiles two at a time."""

    def finalize_options(self) -> None:
        """Take two processors, if nothing else was asked for and they are there."""
        super().finalize_options()
        self.parallel = self.parallel or min(2, os.cpu_count() or 1)

    def run(self) -> None:
        """Compile all; where the modules lie beside their sources, note what they were made of."""
        super().run()
        if self.inplace or self.editable_mode:
            files = sorted(path for suffix in SOURCE_SUFFIXES for path in Path("smtpraft").rglob(f"*{suffix}"))
            files += sorted(Path(*extension.name.split(".")).with_suffix(".py") for extension in self.extensions)
            made_of = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()}
            MADE_OF.parent.mkdir(exist_ok=True)
            MADE_OF.write_text(json.dumps(made_of, indent=1))

    def build_extension(self, ext: Extension) -> None:
        """Compile one."""
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError) as error:
            if REQUIRED:
                raise SystemExit(
                    f"\n{ext.name} cannot be compiled: {error}\n"
                    "Install a C compiler and the headers of this Python (Debian: apt-get install gcc python3-dev),\n"
                    "or set SMTPRAFT_NO_EXTENSIONS=1 instead of SMTPRAFT_REQUIRE_EXTENSIONS=1: correct, but slow.\n"
                ) from None
            raise  # setuptools warns, and goes on without it


def extensions() -> list[Extension]:
    if asked_for("SMTPRAFT_NO_EXTENSIONS") or platform.python_implementation() != "CPython":
        if REQUIRED:
            raise SystemExit("SMTPRAFT_REQUIRE_EXTENSIONS is set, but this build has no extensions")
        return []
    try:
        from Cython.Build import cythonize
        from Cython.Compiler.Options import get_directive_defaults
    except ModuleNotFoundError:
        raise SystemExit(
            "Cython is missing: build with `pip wheel .`, which brings it, or install Cython>=3.2"
        ) from None

    limited = [("Py_LIMITED_API", hex(ABI3))] if asked_for("SMTPRAFT_ABI3") else []
    wanted = [
        Extension(
            name,
            [f"{name.replace('.', '/')}.pyx"],
            depends=list(depends),
            # -g0: debugging symbols are most of the file, and hold the path of the build.
            extra_compile_args=[optimisation, "-fno-strict-aliasing", "-g0"],
            define_macros=limited,
        )
        for name, depends, optimisation, in_limited_api in EXTENSIONS
        if in_limited_api or not limited
    ]
    core = [
        Extension(
            f"smtpraft.{package}.{name}",
            [f"smtpraft/{package}/{name}.py"],
            extra_compile_args=["-O2", "-fno-strict-aliasing", "-g0"],
        )
        for package, names in (("consensus", CORE), ("smtp", SESSION))
        for name in names
        if not limited
    ]
    if METADATA & set(sys.argv):
        return wanted + core  # pip asks for these before it builds: Cython would do all its work three times
    # force: a .c file from another version of Cython or of the source must never be compiled.
    built: list[Extension] = cythonize(wanted, force=True, language_level=3)  # type: ignore[no-untyped-call]
    get_directive_defaults().update(freelist=0, no_gc=False)  # what is here may be given for a module
    for extension in core:
        given = MESSAGES_DIRECTIVES if extension.name.endswith(".messages") else CORE_DIRECTIVES
        built += cythonize([extension], force=True, language_level=3, build_dir="build/core", compiler_directives=given)
    for extension in built:
        extension.optional = not REQUIRED  # Said to the template, cythonize() would drop it.
        extension.py_limited_api = bool(limited)
    return built


def grammar_files() -> list[tuple[str, list[str]]]:
    """Write the manual page and the completions of shells; return them as setuptools wants them."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    try:
        from smtpraft.cli import completion, manual  # stdlib only: the build has nothing else
        from smtpraft.cli.entry import build_parser
    finally:
        del sys.path[0]
    parser = build_parser()
    share = Path("build", "share")
    files = {
        "man/man1/smtpraft.1": manual.page(parser),
        "bash-completion/completions/smtpraft": completion.script(parser, "bash"),
        "zsh/site-functions/_smtpraft": completion.script(parser, "zsh"),
        "fish/vendor_completions.d/smtpraft.fish": completion.script(parser, "fish"),
    }
    for name, text in files.items():
        path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [(f"share/{Path(name).parent}", [str(share / name)]) for name in files]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
    data_files=grammar_files(),
    options={"bdist_wheel": {"py_limited_api": "cp312"}} if asked_for("SMTPRAFT_ABI3") else {},
)
