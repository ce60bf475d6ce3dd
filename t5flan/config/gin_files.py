"""Finding and reading gin files: paths, and those packaged with t5flan."""

from pathlib import Path

from t5flan.errors import UsageError, nearest
from t5flan.files import to_path

GIN_ROOT = Path(__file__).resolve().parent.parent / 'gin'
"""The packaged gin files; in a checkout a link to the top-level gin/."""


def packaged_files() -> list[str]:
    """The gin files that come with t5flan, as --gin_file takes them: 'models/t5_1_1_small.gin', 'runs/pretrain.gin' …"""
    return sorted(str(path.relative_to(GIN_ROOT)) for path in GIN_ROOT.rglob('*.gin'))


def find_gin_file(name: str, asked_by: str) -> str:
    """`name` as it is (from the current folder), then under the packaged gin/, each with or without `.gin`."""
    if '://' in name:
        return name
    for folder in (Path(), GIN_ROOT):
        for candidate in (folder / name, folder / f'{name}.gin'):
            if candidate.is_file():
                return str(candidate)
    beside = Path(name).parent
    near = [*packaged_files(), *(str(path) for path in (beside.glob('*.gin') if beside.is_dir() else ()))]
    meant = nearest(name if name.endswith('.gin') else f'{name}.gin', near)
    hint = f': did you mean {meant}?' if meant else ''
    raise UsageError(f'{asked_by}: there is no gin file {name} here or in {GIN_ROOT}{hint}')


def exists(path: str) -> bool:
    """Whether there is such a file, local or remote."""
    return to_path(path).is_file()


def read_text(path: str) -> str:
    """The UTF-8 text of a file, local or in a bucket.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return to_path(path).read_bytes().decode('utf-8')
    except Exception as error:
        if '://' not in path and not isinstance(error, (OSError, UnicodeDecodeError)):
            raise
        reason = (
            'it is not UTF-8 text'
            if isinstance(error, UnicodeDecodeError)
            else getattr(error, 'strerror', None) or str(error)
        )
        raise UsageError(f'{path} cannot be read: {reason}') from None
