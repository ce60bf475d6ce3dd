"""The published Flan collection's exported rows, read directly as its submixtures, without TFDS.

`DataConfig.flan_collection` is a folder with a file, or a folder of files, for each submixture and way to ask:

    flan_zs_noopt_train.jsonl.gz      flan_fs_opt_data/0.parquet      cot_zs_noopt_train.jsonl

The name begins with the submixture (flan or flan2021, t0, niv2, cot, dialog), then 'zs' or 'fs' (zero-shot or few-shot)
and 'opt' or 'noopt' (with or without answer options). The rows have 'inputs' and 'targets'.

Each is the task flan_collection_SUBMIXTURE_zs_opt, …; flan_collection_SUBMIXTURE mixes those of a submixture in equal
parts, and flan_collection the submixtures as flan2022 does (arXiv:2301.13688).
"""

import re
from pathlib import Path

from t5flan.data.corpus_config import FileTask
from t5flan.errors import UserError
from t5flan.tasks import files
from t5flan.tasks.flan.table import load_table
from t5flan.tasks.registry import replace_mixture

MIXTURE = 'flan_collection'
_NAME = re.compile(r'(flan|flan2021|t0|niv2|cot|dialog)(?:_submix)?_(zs|fs)_(opt|noopt)(?![a-z]).*')
_SUBMIXTURE = {'flan': 'flan2021', 't0': 't0_sf'}


def find(folder: str) -> dict[str, dict[str, str]]:
    """Submixture -> 'zs_opt' and so on -> the path or glob of its rows.

    Raises:
        UserError: there is no such folder, or none of its names is one of the collection.
    """
    root, found = Path(folder), dict[str, dict[str, str]]()
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            name, shots, options = match.groups()
            variants = found.setdefault(_SUBMIXTURE.get(name, name), {})
            stem = re.split(r'(?:_train|_data)?(?:_?part_?\d+)?(?:\.|$)', path.name)[0]
            pattern = f'{path}/*' if path.is_dir() else f'{root}/{stem}*'  # the parts of one export together
            variants.setdefault(f'{shots}_{options}', pattern)
    if not found:
        problem = f'DataConfig.flan_collection={folder!r} has no file such as flan_zs_opt_train.jsonl.gz'
        raise UserError(f'{problem}. Set it to the folder of the published rows.')
    return found


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
        names = []
        for variant, pattern in variants.items():
            names.append(f'{MIXTURE}_{submixture}_{variant}')
            files.register_task(FileTask(names[-1], pattern), skip_broken)
        replace_mixture(f'{MIXTURE}_{submixture}', [(name, 1.0) for name in names])
    missing = [f'{name} ({share:.0%})' for name, share in shares.items() if name not in found]
    if missing and not redistribute:
        if MIXTURE in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(MIXTURE)
        if needed:
            problem = f'{folder} lacks {", ".join(missing)} of {MIXTURE}'
            raise UserError(f'{problem}. Add them, or set DataConfig.flan_redistribute = True to share their rates.')
        return
    replace_mixture(MIXTURE, [(f'{MIXTURE}_{name}', share) for name, share in shares.items() if name in found])
