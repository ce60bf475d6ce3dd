"""Shared by the experiments: t5flan commands that are printed before they run, and Markdown tables."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from t5flan.__main__ import main


def run(*argv: str) -> None:
    """Prints and runs a t5flan command in this process; exits if it fails."""
    print(f'$ t5flan {shlex.join(argv)}', flush=True)
    if code := main(argv):
        raise SystemExit(code)


def is_trained(workdir: Path, steps: int) -> bool:
    """Whether a training run saved the checkpoint of its last step."""
    return (workdir / 'checkpoints' / str(steps)).is_dir()


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    return '\n'.join([*lines, *(f'| {" | ".join(row)} |' for row in rows)])
