"""A fixture that runs a command line in this process."""

import pytest

from t5flan.__main__ import main


@pytest.fixture
def cli(capsys):
    """Runs a command line and returns (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return run
