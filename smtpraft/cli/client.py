"""The command line's side of the admin API: blocking, standard library only, so that a command starts at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlencode

from smtpraft.cli.exits import CommandError, Exit

ENDPOINT_DEFAULT: Final = "127.0.0.1:8025"
PAGE_MESSAGES: Final = 500
FETCH_BYTES: Final = 1024 * 1024

Json = dict[str, "JsonValue"]
JsonValue = str | int | float | bool | None | list["JsonValue"] | Json


class EndpointError(Exception):
    """One endpoint gave no answer at all. The text says which and why; `sent`: it may have got the request though."""

    def __init__(self, text: str, *, sent: bool = False) -> None:
        super().__init__(text)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of `endpoint`."""

    endpoint: str
    status: int
    body: bytes

    def json(self) -> Json:
        """Return the body, an object.

        Raises:
            CommandError: it is something else: whatever answers there is no smtpraft.
        """
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CommandError(Exit.UNAVAILABLE, f"{self.endpoint}: the answer is not smtpraft's (HTTP {self.status})")
        return value

    def error(self) -> str:
        """Return what the endpoint said was wrong."""
        try:
            return str(json.loads(self.body)["error"])
        except (ValueError, KeyError, TypeError):
            return f"HTTP {self.status}"

    def code(self) -> str:
        """Return the code by which programs know what was wrong, "" if there is none."""
        try:
            return str(json.loads(self.body).get("code", ""))
        except (ValueError, AttributeError):
            return ""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for HTTPS endpoints: an authority to trust, a certificate of our own and its key."""

    cacert: str = ""
    cert: str = ""
    key: str = ""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class Client:
    """Talks to the first of `endpoints` that can answer."""

    endpoints: Sequence[str]
    timeout_s: float = 5.0
    token: str = field(default="", repr=False)
    tls: Tls = Tls()

    def tls_context(self) -> ssl.SSLContext:
        """Return what HTTPS endpoints are met with.

        Raises:
            CommandError: a file cannot be used.
        """
        cacert, cert, key = self.tls.cacert, self.tls.cert, self.tls.key
        for option, path in (("--cacert", cacert), ("--cert", cert), ("--key", key)):
            try:
                if path:  # ssl does not say which of its files is missing
                    Path(path).open("rb").close()
            except OSError as error:
                raise CommandError(Exit.CONFIG, f"{option} {path}: {error.strerror}") from None
        used = f"--cacert {cacert}"
        try:
            context = ssl.create_default_context(cafile=cacert or None)
            if cert:
                used = f"--cert {cert} --key {key}" if key else f"--cert {cert}"
                context.load_cert_chain(cert, key or None)
        except OSError as error:  # ssl.SSLError is one
            raise CommandError(Exit.CONFIG, f"{used}: cannot be used: {error}") from None
        return context

    def _connection(self, endpoint: str) -> http.client.HTTPConnection:
        """Return a connection to `unix:PATH`, `https://HOST:PORT` or `[http://]HOST:PORT`, not open yet.

        Raises:
            InvalidURL: the port is none.
        """
        if endpoint.startswith("unix:"):
            return _UnixConnection(endpoint.removeprefix("unix:"), self.timeout_s)
        if endpoint.startswith("https://"):
            host = endpoint.removeprefix("https://").rstrip("/")
            return http.client.HTTPSConnection(host, timeout=self.timeout_s, context=self.tls_context())
        return http.client.HTTPConnection(endpoint.removeprefix("http://").rstrip("/"), timeout=self.timeout_s)

    def stream(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and content of the server-sent events of the first endpoint that answers, until it ends them.

        Raises:
            CommandError: none answers with a stream, or it is silent for `timeout_s`.
        """
        failures = []
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        for endpoint in self.endpoints:
            try:
                connection = self._connection(endpoint)
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
            except (http.client.HTTPException, OSError, UnicodeError) as error:
                failures.append(f"{endpoint}: {_reason(error)}")
                continue
            with contextlib.closing(connection):
                if response.status != 200:
                    failures.append(f"{endpoint}: {Answer(endpoint, response.status, response.read()).error()}")
                    continue
                name = ""
                try:
                    while line := response.readline():
                        key, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                        if key == "event":
                            name = value
                        elif key == "data":
                            yield name, json.loads(value)
                except (http.client.HTTPException, OSError) as error:
                    raise CommandError(Exit.UNAVAILABLE, f"{endpoint}: broke off: {_reason(error)}") from None
                return
        raise CommandError(Exit.UNAVAILABLE, *failures)

    def ask(self, endpoint: str, method: str, path: str, body: Json | None = None) -> Answer:
        """Return the answer of this one endpoint.

        Raises:
            EndpointError: there is none.
        """
        host = (
            ""
            if endpoint.startswith("unix:")
            else endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")
        )
        port = host.rpartition(":")[2] if ":" in host else ""
        if port.isascii() and port.isdigit() and not 0 < int(port[:6]) <= 65535:
            raise EndpointError(f"{endpoint}: {port} is no port")  # the resolver would take it modulo 65536
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        sent = False
        try:
            connection = self._connection(endpoint)
            try:
                connection.connect()
                sent = True
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                return Answer(endpoint, response.status, response.read())
            finally:
                connection.close()
        except http.client.HTTPException as error:
            reason = (
                _reason(error) if isinstance(error, http.client.InvalidURL) else "what answers there is no smtpraft"
            )
            raise EndpointError(f"{endpoint}: {reason}", sent=sent) from None
        except (OSError, UnicodeError) as error:
            raise EndpointError(f"{endpoint}: {_reason(error)}", sent=sent) from None

    def request(self, method: str, path: str, body: Json | None = None, *, next_on: Sequence[int] = (503,)) -> Answer:
        """Return the first answer that is neither missing nor one of `next_on`: "not now", unless said otherwise.

        A request that changes something goes to the next endpoint only if this one was never reached or refused it:
        all of these requests may be repeated without harm.

        Raises:
            CommandError: no endpoint could; TEMPFAIL if one was there but has no quorum, else UNAVAILABLE.
        """
        failures = []
        status = Exit.UNAVAILABLE
        for endpoint in self.endpoints:
            try:
                answer = self.ask(endpoint, method, path, body)
            except EndpointError as error:
                failures.append(str(error))
                continue
            if answer.status in next_on:
                failures.append(f"{endpoint}: {answer.error()}")
                status = Exit.TEMPFAIL
                continue
            if answer.status in (401, 403):
                raise CommandError(Exit.CONFIG, f"{endpoint}: {answer.error()}")
            return answer
        raise CommandError(status, *failures)

    def request_once(self, method: str, path: str, body: Json | None = None) -> Answer:
        """Return an answer to what must not be done twice: the next endpoint is asked only if this one surely did not.

        Raises:
            CommandError: as `request`; TEMPFAIL too if it is not known whether it was done.
        """
        failures = []
        status = Exit.UNAVAILABLE
        for endpoint in self.endpoints:
            try:
                answer = self.ask(endpoint, method, path, body)
            except EndpointError as error:
                if error.sent:
                    unknown = f"{error}; it may be done or not: look before you repeat it"
                    raise CommandError(Exit.TEMPFAIL, unknown) from None
                failures.append(str(error))
                continue
            if answer.status in (401, 403):
                raise CommandError(Exit.CONFIG, f"{endpoint}: {answer.error()}")
            if answer.status != 503:
                return answer
            if answer.code() not in ("not-replicated", "stopping"):
                raise CommandError(Exit.TEMPFAIL, f"{endpoint}: {answer.error()}")
            failures.append(f"{endpoint}: {answer.error()}")
            status = Exit.TEMPFAIL
        raise CommandError(status, *failures)

    def fetch(self, path: str, target: BinaryIO) -> str:
        """Write the body of the first endpoint that answers with 200 to `target`, however long; return which it was.

        Raises:
            CommandError: none did, or the answer broke off.
            OSError: `target` cannot be written.
        """
        failures = []
        status = Exit.UNAVAILABLE
        for endpoint in self.endpoints:
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            try:
                connection = self._connection(endpoint)
            except http.client.InvalidURL as error:
                failures.append(f"{endpoint}: {error}")
                continue
            try:
                try:
                    connection.request("GET", path, headers=headers)
                    response = connection.getresponse()
                    if response.status != 200:
                        answer = Answer(endpoint, response.status, response.read())
                        failures.append(f"{endpoint}: {answer.error()}")
                        status = Exit.CONFIG if answer.status in (401, 403) else Exit.TEMPFAIL
                        continue
                    block = response.read(FETCH_BYTES)
                except (http.client.HTTPException, OSError, UnicodeError) as error:
                    failures.append(f"{endpoint}: {_reason(error)}")
                    continue
                while block:
                    target.write(block)
                    try:
                        block = response.read(FETCH_BYTES)
                    except (http.client.HTTPException, OSError) as error:
                        raise CommandError(Exit.UNAVAILABLE, f"{endpoint}: broke off: {_reason(error)}") from None
                if response.length:
                    raise CommandError(Exit.UNAVAILABLE, f"{endpoint}: broke off: {response.length} bytes are missing")
                return endpoint
            finally:
                connection.close()
        raise CommandError(status, *failures)

    def queue(self, limit: int | None = None) -> Iterator[Json]:
        """Yield the messages of the queue, oldest first, page by page."""
        after = ""
        left = limit
        while left is None or left > 0:
            page = PAGE_MESSAGES if left is None else min(left, PAGE_MESSAGES)
            query = {"limit": str(page)} | ({"after": after} if after else {})
            answer = self.request("GET", f"/v1/queue?{urlencode(query)}")
            if answer.status != 200:
                raise CommandError(Exit.UNAVAILABLE, f"{answer.endpoint}: {answer.error()}")
            content = answer.json()
            messages = content.get("messages")
            assert isinstance(messages, list)
            for message in messages:
                assert isinstance(message, dict)
                yield message
            if left is not None:
                left -= len(messages)
            next_after = content.get("next")
            if not next_after:
                return
            after = str(next_after)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}; see --cacert"
    if isinstance(error, FileNotFoundError):
        return "no such socket: no node is running there"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: no node is running there"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "no such host"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def endpoints_from(text: str | None) -> list[str]:
    """Return the endpoints of `--endpoints` or SMTPRAFT_ENDPOINTS, or the default one."""
    text = text or os.environ.get("SMTPRAFT_ENDPOINTS", "")
    return [part.strip() for part in text.split(",") if part.strip()] or [ENDPOINT_DEFAULT]


def tls_from(cacert: str | None, cert: str | None, key: str | None) -> Tls:
    """Return the files of `--cacert`, `--cert`, `--key`, or of SMTPRAFT_CACERT and so on."""
    environ = os.environ
    return Tls(
        cacert or environ.get("SMTPRAFT_CACERT", ""),
        cert or environ.get("SMTPRAFT_CERT", ""),
        key or environ.get("SMTPRAFT_KEY", ""),
    )


def token_from(path: str | None) -> str:
    """Return the bearer token in the file of `--token-file` or SMTPRAFT_TOKEN_FILE, or nothing.

    Raises:
        CommandError: the file cannot be read, or holds no token. The text never holds what the file does.
    """
    path = path or os.environ.get("SMTPRAFT_TOKEN_FILE", "")
    if not path:
        return ""
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise CommandError(Exit.CONFIG, f"token file {path}: {error.strerror or error}") from None
    if not token or not all(0x21 <= byte <= 0x7E for byte in token):
        raise CommandError(Exit.CONFIG, f"token file {path}: it must hold one line of printable ASCII")
    return token.decode("ascii")
