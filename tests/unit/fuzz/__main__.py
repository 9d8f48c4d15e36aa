"""Fuzz what reads strangers' bytes: `python -m tests.unit.fuzz [--inputs N] [--seed S] [--only SUBJECT]`."""

from __future__ import annotations

import argparse
import secrets
import time

from .subjects import SUBJECTS, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all subjects together (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, which is printed")
    parser.add_argument("--only", choices=SUBJECTS, default=None, help="one subject")
    arguments = parser.parse_args()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    subjects = [arguments.only] if arguments.only else list(SUBJECTS)
    print(f"fuzz: seed {seed}", flush=True)
    total = 0
    for place, subject in enumerate(subjects):
        inputs = arguments.inputs * (place + 1) // len(subjects) - arguments.inputs * place // len(subjects)
        began = time.monotonic()
        for _ in run(subject, seed, inputs):
            pass
        total += inputs
        print(f"fuzz: {subject}: {inputs} inputs, no difference, {time.monotonic() - began:.0f} s", flush=True)
    print(f"fuzz: {total} inputs, no difference")


if __name__ == "__main__":
    main()
