"""Read the settings: environment over file over default, and say where each value came from.

Order of precedence: environment (`SMTPRAFT_CLUSTER__ELECTION_TIMEOUT_MS=…`), file, default. Strict: an unknown key is
an error that names it, its file and its line.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_type_hints

import msgspec

from smtpraft.cluster.addresses import Peer, parse_listen, parse_peers
from smtpraft.cluster.secret import check_secret_policy
from smtpraft.config import (
    Address,
    Config,
    ConfigError,
    RouteSettings,
    find_problems,
    find_warnings,
    parse_address,
)
from smtpraft.delivery.routes import Routes
from smtpraft.smtp.address import AddressError, parse_path
from smtpraft.types import NodeId

ENVIRONMENT_PREFIX: Final = "SMTPRAFT_"
ENVIRONMENT_FILE: Final = "SMTPRAFT_CONFIG"
JOIN_VARIABLE: Final = "SMTPRAFT_CLUSTER__JOIN"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked configuration. `sources["smtp.listen"]` is `default`, `FILE:LINE` or a variable's name."""

    config: Config
    path: str | None
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    name: kind for name, kind in get_type_hints(Config).items() if issubclass(kind, msgspec.Struct)
}


def load(path: str | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read the file at `path` (or the one `SMTPRAFT_CONFIG` names, or none), lay the environment over it and check all.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get(ENVIRONMENT_FILE) or None
    tree: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    sources = {f"{section}.{key}": "default" for section, key in _settings()}
    problems: list[str] = []
    if path is not None:
        problems += _read_file(path, tree, sources)
    problems += _read_environment(environ, tree, sources)
    values: dict[str, msgspec.Struct] = {}
    for section, kind in SECTIONS.items():
        for key, value in tree[section].items():  # one by one: msgspec stops at the first that is wrong
            try:
                msgspec.convert({key: value}, kind)
            except msgspec.ValidationError as error:
                problems.append(_explain(error, section, sources))
        if not problems:
            values[section] = msgspec.convert(tree[section], kind)
    if problems:
        raise ConfigError(*problems)
    config = msgspec.convert({name: msgspec.to_builtins(value) for name, value in values.items()}, Config)
    problems = [_with_source(problem, sources) for problem in [*find_problems(config), *_part_problems(config)]]
    if problems:
        raise ConfigError(*problems)
    return Loaded(config, path, sources, tuple(find_warnings(config)))


def _part_problems(config: Config) -> Iterator[str]:
    """Yield what the parts themselves find wrong with their addresses and routes."""
    cluster = config.cluster
    try:
        others = parse_peers(cluster.peers, NodeId(config.node.id))
        listen = parse_listen(cluster.listen)
        for peer in others:
            if (peer.host, peer.port) == listen:
                yield f"cluster.peers: {str(peer)!r} has the address of this node itself (cluster.listen)"
        seeds = [Peer(NodeId("cluster.join"), *parse_listen(text, "cluster.join")) for text in cluster.join]
        if (others or seeds) and not cluster.secret_file:
            check_secret_policy(None, listen, [*others, *seeds])
    except ConfigError as error:
        yield str(error)
    try:
        Routes(config.delivery.routes)
    except ConfigError as error:
        yield f"delivery.routes: {error}"
    yield from _listen_problems(config)
    yield from _address_problems(config)


def _listen_problems(config: Config) -> Iterator[str]:
    """Yield the listeners that cannot all be opened."""
    wanted = [("smtp.listen", text) for text in config.smtp.listen] + [("admin.listen", config.admin.listen)]
    if config.cluster.peers or config.cluster.join or config.cluster.secret_file:
        wanted.insert(0, ("cluster.listen", config.cluster.listen))
    taken: dict[Address, str] = {}
    for setting, text in wanted:
        try:
            address = parse_address(text)
        except ValueError:
            continue  # told by itself
        if address.port and address in taken:
            yield f"{setting}: {text!r} is also in {taken[address]}; each listener needs an address of its own"
        taken.setdefault(address, setting)


def _address_problems(config: Config) -> Iterator[str]:
    """Yield what is no mail address or domain."""
    postmaster = config.smtp.postmaster
    if postmaster:
        try:
            path, rest = parse_path(f"<{postmaster}>")
        except AddressError as error:
            yield f"smtp.postmaster = {json.dumps(postmaster)}: {error}; write a whole address, postmaster@example.org"
        else:
            if rest or not path.domain:
                yield f"smtp.postmaster = {json.dumps(postmaster)}: write a whole address, postmaster@example.org"
    for domain in config.smtp.local_domains:
        try:
            path, rest = parse_path(f"<postmaster@{domain}>")
            wrong = bool(rest) or path.domain != domain
        except AddressError:
            wrong = True
        if wrong:
            yield f"smtp.local_domains: {domain!r} is no domain"


def _settings() -> Iterator[tuple[str, str]]:
    for section, kind in SECTIONS.items():
        for key in kind.__struct_fields__:
            yield section, key


def _read_file(path: str, tree: dict[str, dict[str, object]], sources: dict[str, str]) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        document = tomllib.loads(text)
    except OSError as error:
        return [f"{path}: cannot read the configuration: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return [f"{path}: not TOML: {error}"]
    problems = []
    for section, content in document.items():
        where = f"{path}{_line_of(text, section, None)}"
        if section not in SECTIONS:
            problems.append(f"{where}: unknown section [{section}]{_nearest(section, SECTIONS)}")
        elif not isinstance(content, dict):
            problems.append(f"{where}: {section} must be a section: write [{section}] on a line of its own")
        else:
            known = SECTIONS[section].__struct_fields__
            for key, value in content.items():
                where = f"{path}{_line_of(text, section, key)}"
                if key in known:
                    tree[section][key] = value
                    sources[f"{section}.{key}"] = where
                else:
                    problems.append(f"{where}: unknown setting `{key}` in [{section}]{_nearest(key, known)}")
    return problems


def _line_of(text: str, section: str, key: str | None) -> str:
    """Return `:line` of a section or of a key in it, or nothing when it is written in a way that this search misses."""
    current = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*]", line):
            current = header[1]
            if key is None and current == section:
                return f":{number}"
        wanted, inside = (section, None) if key is None else (key, section)
        if current == inside and re.match(rf"\s*[\"']?{re.escape(wanted)}[\"']?\s*=", line):
            return f":{number}"
    return ""


def _nearest(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else f" (known: {', '.join(known)})"


def _read_environment(
    environ: Mapping[str, str],
    tree: dict[str, dict[str, object]],
    sources: dict[str, str],
) -> list[str]:
    problems = []
    for name in sorted(environ):
        # One underscore is not ours: Kubernetes sets SMTPRAFT_SERVICE_HOST and the like in every pod.
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if section not in SECTIONS:
            problems.append(f"{name}: unknown section [{section}]{_nearest(section, SECTIONS)}")
            continue
        kind = SECTIONS[section]
        if key not in kind.__struct_fields__:
            problems.append(f"{name}: unknown setting `{key}` in [{section}]{_nearest(key, kind.__struct_fields__)}")
            continue
        try:
            tree[section][key] = _parse_variable(environ[name], get_type_hints(kind)[key])
            sources[f"{section}.{key}"] = name
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def _parse_variable(text: str, kind: object) -> object:
    """Return the value of a variable: a list is a TOML array, or comma-separated with routes as `domain=URL`."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            raise ValueError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
    if text.lstrip().startswith("["):
        try:
            value: object = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{text!r} is no TOML array: {error}") from None
        return value
    items = [item.strip() for item in text.split(",") if item.strip()]
    if kind == list[float]:
        return [_parse_variable(item, float) for item in items]
    if kind == list[RouteSettings]:
        pairs = [item.partition("=") for item in items]
        if bad := [domain for domain, _, to in pairs if not to]:
            raise ValueError(f"{bad[0]!r} is no route: write domain=URL")
        return [{"domain": domain, "to": to} for domain, _, to in pairs]
    return items


def _explain(error: msgspec.ValidationError, section: str, sources: Mapping[str, str]) -> str:
    text, _, path = str(error).partition(" - at `$.")
    key = re.split(r"[\[.`]", path)[0]
    return _with_source(f"{section}.{path.rstrip('`') or key}: {text[:1].lower()}{text[1:]}", sources)


def _with_source(problem: str, sources: Mapping[str, str]) -> str:
    match = re.match(r"\w+\.\w+", problem)
    source = sources.get(match[0], "default") if match else "default"
    return problem if source == "default" else f"{source}: {problem}"
