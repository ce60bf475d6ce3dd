"""The published Flan collection's exported rows, read directly as its submixtures, without TFDS.

`DataConfig.flan_collection` is a folder with a file, or a folder of files, for each submixture and way to ask. The
names are those of the releases on the Hugging Face hub, all of which are read:

    flan_zs_noopt_train.jsonl.gz   flan_fs_opt_train_part1.jsonl.gz   SirNeural/flan_v2
    flan_zsopt_data/part.0.parquet   cot_fsopt_data/part.0.parquet    Open-Orca/FLAN
    flan2021_submix_original/data/train-*.parquet                     conceptofmind/…, which google-research/FLAN links

The name begins with the submixture (flan or flan2021, t0, niv2, cot, dialog), then 'zs' or 'fs' (zero-shot or few-shot)
and 'opt' or 'noopt' (with or without answer options); a folder NAME_submix_original has all ways mixed. The rows have
'inputs' and 'targets'. A file beside its own parts is read instead of them.

Each is the task flan_collection_SUBMIXTURE_zs_opt, …, or flan_collection_SUBMIXTURE_all; flan_collection_SUBMIXTURE
mixes those of a submixture in equal parts, and flan_collection the submixtures as flan2022 does (arXiv:2301.13688). As
in its run_example.py, niv2, cot and dialog use only the rows of 'opt', if there are any: in the releases that have
'noopt' for them, it repeats these.
"""

import glob
import re
from pathlib import Path

from t5flan.data.corpus_config import FileTask
from t5flan.data.records.file_rows import read_bytes
from t5flan.errors import UserError
from t5flan.tasks import files
from t5flan.tasks.flan.table import load_table
from t5flan.tasks.registry import replace_mixture

MIXTURE = 'flan_collection'
_SUBMIXTURES = r'(flan|flan2021|t0|niv2|cot|dialog)'
_NAME = re.compile(_SUBMIXTURES + r'(?:_submix)?_(zs|fs)_?(opt|noopt)(?![a-z]).*')
_WHOLE = re.compile(_SUBMIXTURES + r'_submix_original.*')
_ALL = 'all'
_ONE_WAY = ('niv2', 'cot', 'dialog')
"""Submixtures whose prompts are the same with and without options."""
_SUBMIXTURE = {'flan': 'flan2021', 't0': 't0_sf'}


def find(folder: str) -> dict[str, dict[str, str]]:
    """Submixture -> 'zs_opt' and so on -> the path or glob of its rows.

    Raises:
        UserError: there is no such folder, or none of its names is one of the collection.
    """
    root, found = Path(folder), dict[str, dict[str, str]]()
    paths = root.iterdir() if root.is_dir() else ()
    for path in sorted(paths, key=lambda path: (path.is_file(), path.name)):  # Open-Orca has some files twice
        match = _NAME.fullmatch(path.name) or _WHOLE.fullmatch(path.name)
        if match:
            name, *way = match.groups()
            variants = found.setdefault(_SUBMIXTURE.get(name, name), {})
            variants.setdefault('_'.join(way) or _ALL, _files_of(path))
    if not found:
        problem = f'DataConfig.flan_collection={folder!r} has no file such as flan_zs_opt_train.jsonl.gz'
        raise UserError(f'{problem}. Set it to the folder of the published rows.')
    return found


def _files_of(path: Path) -> str:
    """The path or glob of a file, of all the parts with it, or of the files in a folder (in 'data', as on the hub)."""
    if path.is_dir():
        inside = path / 'data'
        return f'{inside if inside.is_dir() else path}/*.[jp][sa][or]*'  # .json, .jsonl, .parquet; not README.md
    before, part, _ = re.split(r'(_?part_?\d+|$)', path.name, maxsplit=1)
    return f'{path.parent}/{before}_part*' if part else str(path)


def _require_whole(pattern: str) -> None:
    """Raises a UserError if the files are pieces of one compressed file (flan_fs_opt of SirNeural/flan_v2)."""
    paths = sorted(glob.glob(pattern))
    first, *others = [read_bytes(path, 0, 2) for path in paths] or [b'']
    if first == b'\x1f\x8b' and any(head != first for head in others):
        whole = re.sub(r'_?part_?\d+', '', paths[0])
        problem = f'{paths[1]} is a piece of one compressed file'
        raise UserError(f'{problem}. Join the pieces: cat {pattern} > {whole}')


def register(folder: str | None, redistribute: bool = False, needed: bool = False, skip_broken: bool = False) -> None:
    """Registers the tasks and mixtures of a folder; nothing is read yet.

    Args:
        redistribute: whether the submixtures that are there share the rate of those that are not.
        needed: whether the whole mixture will be used.
        skip_broken: as in `files.register_task`.

    Raises:
        UserError: the folder has no rows, or a submixture is missing and `needed`, without `redistribute`.
    """
    import seqio

    if folder is None:
        return
    found, shares = find(folder), load_table().mixtures['flan2022']
    for submixture, variants in found.items():
        names = {variant: f'{MIXTURE}_{submixture}_{variant}' for variant in variants}
        for variant, pattern in variants.items():
            _require_whole(pattern)
            files.register_task(FileTask(names[variant], pattern), skip_broken)
        with_options = [name for variant, name in names.items() if variant.endswith('_opt')]
        mixed = with_options if submixture in _ONE_WAY and with_options else names.values()
        replace_mixture(f'{MIXTURE}_{submixture}', [(name, 1.0) for name in mixed])
    missing = [f'{name} ({share:.0%})' for name, share in shares.items() if name not in found]
    if missing and not redistribute:
        if MIXTURE in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(MIXTURE)
        if needed:
            problem = f'{folder} lacks {", ".join(missing)} of {MIXTURE}'
            raise UserError(f'{problem}. Add them, or set DataConfig.flan_redistribute = True to share their rates.')
        return
    replace_mixture(MIXTURE, [(f'{MIXTURE}_{name}', share) for name, share in shares.items() if name in found])
