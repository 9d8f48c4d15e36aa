"""A pytest plugin: aiosmtpd's tests see our engine as `aiosmtpd.smtp.SMTP`. `--smtp-engine` says which.

Replies are compared by their code alone: the words are for people (RFC 5321 §4.2), and ours have the enhanced status
codes of RFC 2034. Addresses are put into the brackets that a path has (RFC 5321 §4.1.2); theirs often have none. A
controller that stops ends our sessions, which have no task that it could cancel.

What does not apply stands in `left_out.toml` with its reason; it must fail, or it does apply.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import aiosmtpd.controller
import aiosmtpd.smtp
import pytest
from aiosmtpd.controller import BaseController
from aiosmtpd.testing.statuscodes import StatusCode

from smtpraft.config import ENGINE_FAST, ENGINES

from .engine import SERVERS, engine_class

LEFT_OUT = Path(__file__).parent / "left_out.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smtp-engine", choices=sorted(ENGINES), default=ENGINE_FAST)


def pytest_configure(config: pytest.Config) -> None:
    engine = engine_class(config.getoption("--smtp-engine"))
    for module in (aiosmtpd.smtp, aiosmtpd.controller):
        setattr(module, "SMTP", engine)  # noqa: B010 -- a class is no variable, says mypy
    cancel_tasks = BaseController.cancel_tasks

    def end_sessions(controller: BaseController, stop_loop: bool = True) -> None:
        while SERVERS:
            SERVERS.pop().abandon()
        cancel_tasks(controller, stop_loop)

    for name, function in {
        (BaseController, "cancel_tasks"): end_sessions,
        (StatusCode, "__eq__"): _same_code,
        (StatusCode, "__ne__"): lambda code, reply: not _same_code(code, reply),
        (StatusCode, "__hash__"): lambda code: hash(code[0]),
    }.items():
        setattr(*name, function)


def _same_code(code: StatusCode, reply: Any) -> bool:
    return isinstance(reply, tuple) and bool(code[0] == reply[0])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rows = tomllib.loads(LEFT_OUT.read_text())["left_out"]
    used: Counter[str] = Counter()
    for item in items:
        _put_into_brackets(item)
        name = item.nodeid.rpartition("/")[2]
        for row in rows:
            for pattern in row["tests"]:
                if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")):
                    used[pattern] += 1
                    item.add_marker(pytest.mark.xfail(reason=row["reason"], strict=True, run=row.get("run", True)))
    modules = {item.nodeid.rpartition("/")[2].partition("::")[0] for item in items}
    patterns = [pattern for row in rows for pattern in row["tests"] if pattern.partition("::")[0] in modules]
    if unused := [pattern for pattern in patterns if not used[pattern]]:
        raise pytest.UsageError(f"{LEFT_OUT.name} names what is not there: {unused}")


def _put_into_brackets(item: pytest.Item) -> None:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    address = parameters.get("address")
    if isinstance(address, str) and not address.endswith(">"):
        bare = address.lstrip(" ")
        parameters["address"] = f"{' ' * (len(address) - len(bare))}<{bare}>"
