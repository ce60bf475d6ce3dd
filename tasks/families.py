"""The families of wordings in templates/*.json, each loaded once."""

import functools
from pathlib import Path

from t5flan.data.prompting.templates import LAYOUTS, Family, load_templates
from t5flan.errors import UserError

TEMPLATES = Path(__file__).parent / 'templates'
_OTHERS = {'practice', Path(LAYOUTS).stem}


def families() -> list[str]:
    """Names of the families, sorted."""
    return sorted(path.stem for path in TEMPLATES.glob('*.json') if path.stem not in _OTHERS)


@functools.cache
def family(name: str) -> Family:
    """Loads a family of wordings.

    Raises:
        UserError: there is no such family, or its file is faulty.
    """
    if name not in families():
        raise UserError(f'no family of wordings {name!r}; there are {", ".join(families())}. Set one of them.')
    return load_templates(TEMPLATES / f'{name}.json')
