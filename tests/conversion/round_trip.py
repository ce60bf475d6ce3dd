"""What all tests of conversion require of a format: there and back is the identity."""

from collections.abc import Iterable
from pathlib import Path

from t5flan.conversion import convert
from t5flan.conversion.checkpoint import Checkpoint


def there_and_back(source: Checkpoint, folder: Path, formats: Iterable[str] = ('hf', 't5flan')) -> None:
    """Requires the model to be the same, bit for bit and in each array's dtype, in a format and in 'hf' again.

    They are left in FOLDER/FORMAT and FOLDER/FORMAT_back.
    """
    for format in formats:
        convert.write(source, folder / format, format)
        there = convert.read(folder / format, format)
        convert.compare(source, there, format)
        convert.write(there, folder / f'{format}_back', 'hf')
        back = convert.read(folder / f'{format}_back', 'hf')
        convert.compare(source, back, format)
        assert (back.config, back.dtypes) == (source.config, source.dtypes)
