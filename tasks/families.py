"""The families of wordings in templates/*.json, each read once: what a data set is asked in."""

import functools
from pathlib import Path

from t5flan.data.prompting.templates import LAYOUTS, Family, load_templates
from t5flan.errors import UserError

TEMPLATES = Path(__file__).parent / 'templates'
_OTHERS = {'practice', Path(LAYOUTS).stem}


def families() -> list[str]:
    """Names of the families, in order."""
    return sorted(path.stem for path in TEMPLATES.glob('*.json') if path.stem not in _OTHERS)


@functools.cache
def family(name: str) -> Family:
    """A family's wordings.

    Raises:
        UserError: there is none of that name, or its file is faulty.
    """
    if name not in families():
        raise UserError(f'no family of wordings {name!r}; there are {", ".join(families())}. Set one of them.')
    return load_templates(TEMPLATES / f'{name}.json')
