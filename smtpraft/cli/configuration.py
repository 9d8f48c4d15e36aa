"""`smtpraft config check` and `config show`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

import msgspec

from smtpraft.admin.token import read_token
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.output import print_json, print_rows
from smtpraft.cli.settings import Loaded, load
from smtpraft.cluster.secret import read_secret
from smtpraft.config import Config, ConfigError


def load_or_fail(path: str | None, override: Mapping[str, str] | None = None) -> Loaded:
    """Return the settings; `override` are variables that count more than those of the environment.

    Raises:
        CommandError: CONFIG, with one line for each thing that is wrong.
    """
    try:
        return load(path, os.environ | dict(override or {}))
    except ConfigError as error:
        raise CommandError(Exit.CONFIG, *error.problems) from None


def check(path: str | None, style: str) -> int:
    """Say whether a node could start with the file at `path` and this environment."""
    problems: list[str] = []
    warnings: tuple[str, ...] = ()
    try:
        loaded = load(path)
        warnings = loaded.warnings
        read_secrets(loaded.config)
    except ConfigError as error:
        problems += error.problems
    source = path or "the defaults"
    if style == "json":
        print_json({"ok": not problems, "problems": problems, "warnings": list(warnings)})
    else:
        for problem in problems:
            print(f"smtpraft: {problem}", file=sys.stderr)
        for warning in warnings:
            print(f"smtpraft: warning: {warning}", file=sys.stderr)
        if not problems:
            print(f"{source}: OK")
    return Exit.CONFIG if problems else Exit.OK


def read_secrets(config: Config) -> tuple[bytes | None, bytes]:
    """Return the cluster's secret (None: there is none) and the admin token (empty: there is none).

    Raises:
        ConfigError: a file that is set cannot be used.
    """
    secret = read_secret(config.cluster.secret_file) if config.cluster.secret_file else None
    token = read_token(config.admin.token_file) if config.admin.token_file else b""
    return secret, token


def show(path: str | None, style: str, *, effective: bool) -> int:
    """Print the settings that differ from the defaults, or with `effective` all of them and where each comes from."""
    loaded = load_or_fail(path)
    tree: dict[str, dict[str, object]] = msgspec.to_builtins(loaded.config)
    rows = [
        (section, key, value, loaded.sources[f"{section}.{key}"])
        for section, settings in tree.items()
        for key, value in settings.items()
        if effective or loaded.sources[f"{section}.{key}"] != "default"
    ]
    if style == "json":
        if effective:
            print_json({f"{section}.{key}": {"value": value, "source": source} for section, key, value, source in rows})
        else:
            print_json({f"{section}.{key}": value for section, key, value, _ in rows})
    elif style == "table":
        print_rows(
            ("SETTING", "VALUE", "SOURCE"), [(f"{s}.{k}", as_toml(v), source) for s, k, v, source in rows], style
        )
    else:
        _print_toml(rows, with_source=effective)
    return Exit.OK


def _print_toml(rows: list[tuple[str, str, object, str]], *, with_source: bool) -> None:
    current = None
    for section, key, value, source in rows:
        if section != current:
            print(f"{'' if current is None else chr(10)}[{section}]")
            current = section
        line = f"{key} = {as_toml(value)}"
        print(f"{line:<44}  # {source}" if with_source else line)


def as_toml(value: object) -> str:
    """Return a setting's value in TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
