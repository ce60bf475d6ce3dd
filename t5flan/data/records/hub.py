"""Data sets of the Hugging Face hub, and data sets saved on disk, as rows.

    hf:openai/gsm8k,config=main,split=test
    hf:allenai/c4,config=en,streaming,rows=100000
    hf:./my_folder                          a folder laid out like a repository of the hub
    my_folder                               a folder written by `Dataset.save_to_disk`

Options follow the name after commas: `config`, `split` (default: train), `revision`, `rows` (only the first N) and
`streaming` (rows go from the hub to the cache folder without a copy of the whole data set). A data set by name is read
once and kept in the cache folder; `revision` pins it, and another revision is read anew.

A class label is its name, also inside lists and nested columns; a label without a name, such as -1, stays a number.
Columns of images, audio, video and the like are left out. Dates and times are text.

Needs the `datasets` library (extra `hub`). Code of a repository is never run.
"""

import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
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
            hint = did_you_mean(key, _OPTIONS) or '.'
            raise UserError(f'{path}: {key!r} is not one of {known}{hint} Write hf:NAME,KEY=VALUE.')
        if key == 'streaming':
            if value.lower() not in ('', 'true', 'false'):
                raise UserError(f'{path}: streaming={value!r}, expected true or false. Fix it.')
            if value.lower() == 'false':
                continue
        elif not value:
            raise UserError(f'{path}: {key} has no value. Write {key}=VALUE, or remove it.')
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
        UserError: the library is not installed, there is no such data set, config or split, or a row cannot be read.
    """
    name, options = parse_name(path)
    found = _open(path, name, options)
    number = 0
    try:
        for row in itertools.islice(found, int(options.get('rows', 0)) or None):
            yield row
            number += 1
    except Exception as error:  # a file is damaged, or the hub is gone while rows are streamed
        raise _unreadable(f'{path} after row {number}' if number else path, error) from None


def _open(path: str, name: str, options: dict[str, str]) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path} needs the datasets library: pip install 't5flan[hub]'.") from None
    split, config = options.get('split', 'train'), options.get('config')
    folder = os.path.expanduser(name)
    try:
        if any(os.path.isfile(os.path.join(folder, file)) for file in _SAVED):
            return _saved(datasets.load_from_disk(folder), path, options)
        is_local = os.path.isdir(folder) or name.startswith(('.', '/', '~'))
        if is_local and not os.path.isdir(folder):
            raise UserError(f'{path}: {name} is not a folder. Fix the path.')
        source, revision = folder if is_local else name, options.get('revision')
        if is_local and revision:
            raise UserError(f'{path}: revision is for data sets of the hub, and {name} is a folder. Remove it.')
        is_offline = not is_local and datasets.config.HF_HUB_OFFLINE
        if not is_local and not is_offline:
            _require_on_hub(path, name, revision)
        if not is_offline:  # otherwise the configs are unknown, and the library finds those that were downloaded
            _require_config(path, config, datasets.get_dataset_config_names(source, revision=revision))
        found = datasets.load_dataset(source, config, split=split, revision=revision, streaming='streaming' in options)
        return _plain_rows(found, path)
    except UserError:
        raise
    except ValueError as error:
        splits = re.search(r'[Ss]plit.*\[(.*)\]', str(error))
        if splits is None:
            raise _unreadable(path, error) from None
        raise _no_split(path, split, re.findall(r"'(.*?)'", splits[1])) from None
    except Exception as error:  # the library raises errors of many kinds
        raise _unreadable(path, error) from None


def _saved(found: Any, path: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a split that `save_to_disk` wrote: of one data set, or of several by their splits."""
    for option in ('config', 'revision'):
        if option in options:
            raise UserError(f'{path}: {option} is for data sets of the hub; this one was saved to disk. Remove it.')
    splits = found if isinstance(found, dict) else {str(found.split or 'train'): found}
    # A data set alone is the only choice, whatever split it was taken from.
    split = options.get('split', 'train' if isinstance(found, dict) else next(iter(splits)))
    if split not in splits:
        raise _no_split(path, split, splits)
    return _plain_rows(splits[split], path)


def _require_config(path: str, config: str | None, known: Collection[str]) -> None:
    if (config is None and len(known) > 1) or (config is not None and config not in known):
        problem = 'no config is given' if config is None else f'no config {config!r}'
        hint = did_you_mean(config or '', known) or '.'
        raise UserError(f'{path}: {problem}; the configs are {", ".join(known)}{hint} Write config=NAME.')


def _unreadable(path: str, error: Exception) -> UserError:
    why = ' '.join(str(error).split())[:200] or type(error).__name__
    return UserError(f'{path} cannot be read: {why.rstrip(".")}. Check its name, files and options.')


def _no_split(path: str, split: str, known: Collection[str]) -> UserError:
    hint = did_you_mean(split, known) or '.'
    return UserError(f'{path}: no split {split!r}; the splits are {", ".join(known)}{hint} Write split=NAME.')


def _require_on_hub(path: str, name: str, revision: str | None) -> None:
    """Asks the hub once for a data set and a file of it: its library would repeat requests in vain for minutes."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT)
        names = [file.rfilename for file in info.siblings or []]
        data = [file for file in names if not file.startswith(('.', 'README'))]  # anyone may read a card
        for file in data[:1]:
            url = huggingface_hub.hf_hub_url(name, file, repo_type='dataset', revision=revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT)
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


def _plain_rows(found: Any, path: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set without columns of media, with the names of labels instead of their numbers."""
    features = found.features or {}  # unknown for some data sets that are streamed
    media = [name for name, feature in features.items() if _is_media(feature)]
    if media and len(media) == len(features):
        raise UserError(f'{path}: all columns ({", ".join(media)}) hold images or other media. Set a data set of text.')
    if media:
        found = found.remove_columns(media)  # before they are decoded, which needs further libraries
    renamed = {name: plain for name, feature in features.items() if name not in media and (plain := _naming(feature))}
    return map(functools.partial(_named, renamed), found)


def _parts(feature: Any) -> dict[str, Any] | None:
    """The features of a column of nested columns; None for other columns."""
    return dict(feature) if isinstance(feature, dict) else None


def _item(feature: Any) -> Any:
    """The feature of the items of a list; None for other columns."""
    return feature[0] if isinstance(feature, list) else getattr(feature, 'feature', None)


def _is_media(feature: Any) -> bool:
    """Whether a column holds, at any depth, what the library decodes: images, audio, video and the like."""
    if (parts := _parts(feature)) is not None:
        return any(map(_is_media, parts.values()))
    item = _item(feature)
    return _is_media(item) if item is not None else hasattr(feature, 'decode_example')


Naming = Callable[[Any], Any]
"""Replaces the labels in a value by their names."""


def _naming(feature: Any) -> Naming | None:
    """How the labels in a column are named; None if it has none."""
    if isinstance(names := getattr(feature, 'names', None), list):
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    if (parts := _parts(feature)) is not None:
        inner = {name: plain for name, part in parts.items() if (plain := _naming(part))}
        return functools.partial(_named, inner) if inner else None
    item = _item(feature)
    naming = _naming(item) if item is not None else None
    return (lambda values: values and [naming(value) for value in values]) if naming else None


def _named(namings: dict[str, Naming], row: dict[str, Any] | None) -> Any:
    """A row or nested value with names of labels; None is a value that is missing."""
    if row is None or not namings:
        return row
    return row | {name: naming(row[name]) for name, naming in namings.items() if name in row}
