"""Finds and reads gin files: the user's own and those packaged with t5flan."""

from pathlib import Path

from t5flan.errors import UsageError, nearest
from t5flan.files import to_path

GIN_ROOT = Path(__file__).resolve().parent.parent / 'gin'
"""The packaged gin files; in a checkout, a link to the top-level gin/."""


_LARGEST = 2**24  # bytes of a gin file


def packaged_files() -> list[str]:
    """Names of the packaged gin files, as --gin_file takes them: 'models/t5_1_1_small.gin', 'runs/pretrain.gin', ..."""
    return sorted(str(path.relative_to(GIN_ROOT)) for path in GIN_ROOT.rglob('*.gin'))


def find_gin_file(name: str, origin: str) -> str:
    """Finds a gin file, local first, then packaged; `.gin` may be left off. `origin` is the flag or line that names it.

    Raises a `UsageError` that suggests the nearest name if there is no such file.
    """
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
    raise UsageError(f'{origin}: there is no gin file {name} here or in {GIN_ROOT}{hint}')


def exists(path: str) -> bool:
    """Whether a file exists, local or in a bucket."""
    return to_path(path).is_file()


def read_text(path: str) -> str:
    """Reads a UTF-8 text file, local or in a bucket; raises a `UsageError` if it cannot be read."""
    try:
        with to_path(path).open('rb') as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise UsageError(f'{path} cannot be read: it has more than {_LARGEST:,} bytes')
        return content.decode('utf-8-sig')
    except UsageError:
        raise
    except Exception as error:
        if '://' not in path and not isinstance(error, (OSError, UnicodeDecodeError)):
            raise
        is_text = not isinstance(error, UnicodeDecodeError)
        reason = getattr(error, 'strerror', None) or str(error) if is_text else 'it is not UTF-8 text'
        raise UsageError(f'{path} cannot be read: {reason}') from None
