"""Data sets of the Hugging Face hub, and data sets saved on disk, as rows.

    hf:openai/gsm8k,config=main,split=test
    hf:allenai/c4,config=en,streaming,rows=100000
    hf:./my_folder                          a folder laid out like a repository of the hub
    my_folder                               a folder written by `Dataset.save_to_disk`

Options follow the name after commas: `config`, `split` (default: train), `revision`, `rows` (only the first N) and
`streaming` (rows go from the hub to the cache folder without a copy of the whole data set). A data set by name is read
once and kept in the cache folder; `revision` pins it, and another revision is read anew. A class label is its name.

Needs the `datasets` library (extra `hub`). Code of a repository is never run.
"""

import functools
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

from t5flan.errors import UserError, did_you_mean

PREFIX = 'hf:'
_OPTIONS = ('config', 'split', 'revision', 'rows', 'streaming')
_SAVED = ('dataset_dict.json', 'state.json')
"""Files of a folder that `save_to_disk` wrote."""
_TIMEOUT = 20.0
"""Seconds to wait for the hub."""


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
    split, config = options.get('split', 'train'), options.get('config')
    folder = os.path.expanduser(name)
    try:
        if any(os.path.isfile(os.path.join(folder, file)) for file in _SAVED):
            return _split_of(datasets.load_from_disk(folder), path, split)
        is_local = os.path.isdir(folder) or name.startswith(('.', '/', '~'))
        if is_local and not os.path.isdir(folder):
            raise UserError(f'{path}: {name} is not a folder. Fix the path.')
        if not is_local and not datasets.config.HF_HUB_OFFLINE:
            _require_on_hub(path, name, options.get('revision'))
        source, revision = folder if is_local else name, options.get('revision')
        known = datasets.get_dataset_config_names(source, revision=revision)
        if (config is None and len(known) > 1) or (config is not None and config not in known):
            problem = 'no config is given' if config is None else f'no config {config!r}'
            hint = did_you_mean(config or '', known) or '.'
            raise UserError(f'{path}: {problem}; the configs are {", ".join(known)}{hint} Write config=NAME.')
        found = datasets.load_dataset(source, config, split=split, revision=revision, streaming='streaming' in options)
        return _split_of(found, path, split)
    except UserError:
        raise
    except ValueError as error:
        splits = re.search(r'[Ss]plit.*\[(.*)\]', str(error))
        if splits is None:
            raise _unreadable(path, error) from None
        raise _no_split(path, split, re.findall(r"'(.*?)'", splits[1])) from None
    except Exception as error:  # the library raises errors of many kinds
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: Exception) -> UserError:
    why = ' '.join(str(error).split())[:200] or type(error).__name__
    return UserError(f'{path} cannot be read: {why.rstrip(".")}. Check its name, files and options.')


def _no_split(path: str, split: str, known: Collection[str]) -> UserError:
    hint = did_you_mean(split, known) or '.'
    return UserError(f'{path}: no split {split!r}; the splits are {", ".join(known)}{hint} Write split=NAME.')


def _require_on_hub(path: str, name: str, revision: str | None) -> None:
    """Asks the hub for a data set once: its library would repeat a request without answer for half a minute."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT)
    except errors.GatedRepoError:
        raise UserError(f'{path} needs permission: accept its terms on the hub and set HF_TOKEN.') from None
    except errors.RevisionNotFoundError:
        raise UserError(f'{path}: the data set has no revision {revision!r}. Fix revision=.') from None
    except errors.RepositoryNotFoundError:
        raise UserError(f'{path}: the hub has no data set {name!r}. Fix the name, or set HF_TOKEN for yours.') from None
    except errors.HFValidationError:
        raise UserError(f'{path}: {name!r} is not a name of a data set. Write hf:OWNER/NAME, or hf:./FOLDER.') from None
    except Exception as error:
        why = ' '.join(str(error).split())[:100]
        fix = 'Check the network, or set HF_HUB_OFFLINE=1 to read what was downloaded before.'
        raise UserError(f'{path}: the hub cannot be reached ({why}). {fix}') from None


def _split_of(found: Any, path: str, split: str) -> Any:
    """The split of a data set, with the names of labels instead of their numbers."""
    if isinstance(found, dict):
        if split not in found:
            raise _no_split(path, split, found)
        found = found[split]
    return map(functools.partial(_plain_row, _labels(found.features)), found)


def _labels(features: Any) -> dict[str, list[str]]:
    """Column -> the names of its labels, for columns of class labels."""
    return {name: feature.names for name, feature in (features or {}).items() if getattr(feature, 'names', None)}


def _plain_row(labels: dict[str, list[str]], row: dict[str, Any]) -> dict[str, Any]:
    named = {name: names[row[name]] for name, names in labels.items() if isinstance(row[name], int) and row[name] >= 0}
    return row | named
