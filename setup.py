"""The extensions; everything that is static stands in pyproject.toml.

SMTPRAFT_NO_EXTENSIONS=1       builds the plain-Python half only.
SMTPRAFT_REQUIRE_EXTENSIONS=1  makes a failing compiler an error; without it the plain half is installed alone.
"""

from __future__ import annotations

import os
import platform

from setuptools import Extension, setup


def asked_for(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def extensions() -> list[Extension]:
    required = asked_for("SMTPRAFT_REQUIRE_EXTENSIONS")
    if asked_for("SMTPRAFT_NO_EXTENSIONS") or platform.python_implementation() != "CPython":
        if required:
            raise SystemExit("SMTPRAFT_REQUIRE_EXTENSIONS is set, but this build has no extensions")
        return []
    from Cython.Build import cythonize

    options = ["-O3", "-fno-strict-aliasing"]
    fastlog = Extension(
        "smtpraft._fastlog",
        ["smtpraft/_fastlog.pyx"],
        depends=["smtpraft/_fastcodec.pxi", "smtpraft/_fastlog.h"],
        extra_compile_args=options,
    )
    fastscan = Extension(
        "smtpraft.smtp._fastscan",
        ["smtpraft/smtp/_fastscan.pyx"],
        depends=["smtpraft/smtp/_fastscan.h"],
        extra_compile_args=options,
    )
    load = Extension("smtpraft.cli.bench._fastload", ["smtpraft/cli/bench/_fastload.pyx"], extra_compile_args=["-O2"])
    # force: a .c file from another version of Cython or of the .pyx must never be compiled.
    sources = [fastlog, fastscan, load]
    built: list[Extension] = cythonize(sources, force=True, language_level=3)  # type: ignore[no-untyped-call]
    for extension in built:
        extension.optional = not required  # Said to the template, cythonize() would drop it.
    return built


setup(ext_modules=extensions())
