"""The mail that the demo sends: CPython's sample messages where they are installed, and generated ones to 1 MB."""

from __future__ import annotations

import base64
import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINE_BYTES_MAX: Final = 998  # RFC 5321 §4.5.3.1.6, without the CRLF
_GENERATED: Final = ((60, 1_000, 16_000), (37, 16_000, 100_000), (3, 100_000, 1_000_000))  # weight, sizes from, to


def sample_messages() -> list[bytes]:
    """Return the messages of `test.test_email`, with CRLF line ends; none where Python comes without its tests."""
    try:
        package = importlib.util.find_spec("test.test_email")
    except ImportError:
        return []
    if package is None or package.origin is None:
        return []
    samples = []
    for path in sorted((Path(package.origin).parent / "data").glob("msg_*.txt")):
        text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = text.removesuffix(b"\n").split(b"\n")
        if b"\0" not in text and max(map(len, lines)) <= LINE_BYTES_MAX:
            samples.append(b"".join(line + b"\r\n" for line in lines))
    return samples


def generate_message(source: random.Random) -> bytes:
    """Return a message of 1 KB to 1 MB, most of them small, with the lines that a careless relay would break."""
    weights = [weight for weight, _, _ in _GENERATED]
    _, low, high = source.choices(_GENERATED, weights)[0]
    size_bytes = int(low * (high / low) ** source.random())
    head = (
        f"Date: Mon, 23 Nov 2026 04:50:{source.randrange(60):02d} +0000\r\n"
        f"Message-ID: <{source.getrandbits(64):x}@demo.example>\r\n"
        f"From: Demo <sender@demo.example>\r\nTo: Demo <recipient@demo.example>\r\n"
        f"Subject: generated, {size_bytes} bytes\r\n\r\n"
        ".\r\n..\r\n.leading dot\r\n From here\r\nFrom there\r\ntrailing space \r\n\r\n"
    ).encode()
    body = base64.encodebytes(source.randbytes(max(0, size_bytes - len(head)) * 3 // 4)).replace(b"\n", b"\r\n")
    return head + body + b".\r\n"


def demo_messages(seed: int) -> Iterator[bytes]:
    """Yield messages without end, the same ones for the same seed: samples and generated ones in turn."""
    source = random.Random(seed)
    samples = sample_messages()
    while True:
        if samples and source.random() < 0.6:
            yield source.choice(samples)
        else:
            yield generate_message(source)
