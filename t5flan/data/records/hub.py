"""Data sets of the Hugging Face hub, and data sets saved on disk, as rows.

    hf:openai/gsm8k,config=main,split=test
    hf:allenai/c4,config=en,streaming,rows=100000
    hf:./my_folder                          a folder laid out like a repository of the hub
    my_folder                               a folder written by `Dataset.save_to_disk`

Options follow the name after commas: `config`, `split` (default: train), `revision`, `rows` (only the first N) and
`streaming` (rows go from the hub to the cache folder without a copy of the whole data set). A data set by name is read
once and kept in the cache folder; `revision` pins it, and another revision is read anew.

Needs the `datasets` library (extra `hub`). Code of a repository is never run.
"""

import os
from collections.abc import Iterator
from typing import Any

from t5flan.errors import UserError, did_you_mean

PREFIX = 'hf:'
_OPTIONS = ('config', 'split', 'revision', 'rows', 'streaming')
_SAVED = ('dataset_dict.json', 'state.json')
"""Files of a folder that `save_to_disk` wrote."""


def is_dataset(path: str) -> bool:
    """Whether a path is 'hf:NAME', or a folder written by `save_to_disk`."""
    folder = os.path.expanduser(path.partition(',')[0])
    return path.startswith(PREFIX) or any(os.path.isfile(os.path.join(folder, name)) for name in _SAVED)


def parse_name(path: str) -> tuple[str, dict[str, str]]:
    """'hf:squad,split=test' -> ('squad', {'split': 'test'}); raises a UserError for an unknown option."""
    name, *given = path.removeprefix(PREFIX).split(',')
    if not name:
        raise UserError(f'{path!r} names no data set. Write hf:NAME, such as hf:openai/gsm8k,config=main.')
    options = {}
    for option in given:
        key, _, value = option.partition('=')
        if key not in _OPTIONS:
            known = ', '.join(_OPTIONS)
            raise UserError(
                f'{path}: {key!r} is not one of {known}{did_you_mean(key, _OPTIONS)}. Write hf:NAME,KEY=VALUE.'
            )
        options[key] = value
    if 'rows' in options and not (options['rows'].isdecimal() and int(options['rows'])):
        raise UserError(f'{path}: rows={options["rows"]!r}, expected a whole number of 1 or more. Fix it.')
    return name, options


def stamp(path: str) -> str:
    """Changes when the rows have to be read again: with the name and options, or with a file of a local data set."""
    folder = os.path.expanduser(parse_name(path)[0])
    files = [os.path.join(inside, name) for inside, _, names in os.walk(folder) for name in names]
    statuses = [(file, os.stat(file)) for file in sorted(files)]
    return f'{path} {[(file, status.st_size, status.st_mtime_ns) for file, status in statuses]}'


def rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set, in order.

    Raises:
        UserError: the library is not installed, or there is no such data set, config or split.
    """
    name, options = parse_name(path)
    most = int(options.get('rows', 0))
    for number, row in enumerate(_open(path, name, options)):
        if most and number == most:
            return
        yield row


def _open(path: str, name: str, options: dict[str, str]) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path} needs the datasets library: pip install 't5flan[hub]'.") from None
    split = options.get('split', 'train')
    folder = os.path.expanduser(name)
    try:
        if any(os.path.isfile(os.path.join(folder, file)) for file in _SAVED):
            saved = datasets.load_from_disk(folder)
            if isinstance(saved, datasets.DatasetDict):
                if split not in saved:
                    known = ', '.join(saved)
                    raise UserError(f'{path}: no split {split!r}; it has {known}. Write {name},split=NAME.')
                saved = saved[split]
            return saved
        return datasets.load_dataset(
            folder if os.path.isdir(folder) else name,
            options.get('config'),
            split=split,
            revision=options.get('revision'),
            streaming='streaming' in options,
        )
    except UserError:
        raise
    except Exception as error:  # the library raises errors of many kinds, of the network too
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fix = 'Check its name, config and split, and the network (HF_HUB_OFFLINE=1 reads what was downloaded).'
        raise UserError(f'{path} cannot be read: {lines[0][:200]} {fix}') from None
