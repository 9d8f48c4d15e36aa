"""What a suite is given: where to note figures, how much of everything, and how to say what it is doing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from smtpraft.cli.bench.figures import Figures


@dataclass
class Plan:
    """How a run goes."""

    figures: Figures
    directory: Path
    rounds: int
    quick: bool
    say: Callable[[str], None]
    target: Sequence[int] = ()
    """SMTP ports of a cluster that is there already; else one is started."""

    def seconds(self, usual: float) -> float:
        """Return how long a run of `usual` seconds is to be."""
        return min(usual, 0.5) if self.quick else usual

    def count(self, usual: int, quick: int) -> int:
        """Return how many."""
        return quick if self.quick else usual

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A directory of its own, gone afterwards."""
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))
        path.chmod(0o755)  # a peer's processes may run as another user
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
