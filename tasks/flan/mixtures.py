"""Flan 2022's mixtures (arXiv:2210.11416, arXiv:2301.13688), with a task for every row of datasets.json.

    t5flan mixture flan2022 --sample=0 --gin.DataConfig.vocabulary="'bytes'" --gin.DataConfig.cot="'cot_data'"

Task SUBMIXTURE_NAME (flan2021_anli_r1, t0_sf_qasc, dialog_wiki_dialog) reads the data set that `tfds build anli/r1`
prepared, or one of the Hugging Face hub, which is downloaded once, when the task is used. A missing data set stops a
run that trains on it, unless --skip_broken is set. Mixtures, with rates by examples up to the submixture's cap, which
holds for each published task (each prompt of T0's) that a task here stands for:

    flan2021, t0_sf, dialog    the submixtures; muffin is flan2021 and dialog, as in the Flan-PaLM paper
    flan2022                   the public collection: flan2021 0.40, t0_sf 0.32, niv2 0.20, cot 0.05, dialog 0.03
    flan2022_paper             Flan-PaLM's and Flan-T5's: muffin 0.52, t0_sf 0.15, niv2 0.30, cot 0.03

niv2 is the mixture natural_instructions, cot the mixture cot; both need files that the user provides. Without them
`t5flan train` stops, unless DataConfig.flan_redistribute lets the rest share their rates; `missing` (and `t5flan
mixture`) lists what is missing and which setting adds it.
"""

import functools
from collections.abc import Iterable
from typing import Any

from t5flan.data import skipped as broken
from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.instructions import Instruct
from t5flan.errors import UserError
from t5flan.scoring.answers import extract_answer
from t5flan.scoring.metrics import exact_match, squad
from t5flan.tasks.flan.published import counted
from t5flan.tasks.flan.table import Dataset, Submixture, load_table, to_items, wordings_of
from t5flan.tasks.registry import replace_mixture


def register(skip_broken: bool = False) -> None:
    """Registers the tasks of the table and their mixtures; calling it again adds what has become available.

    Call it after natural_instructions.register and cot.register.

    Raises:
        UserError: the table or a file of wordings is faulty; skip_broken skips the tasks with those wordings.
    """
    import seqio

    table = load_table()
    known = set(seqio.TaskRegistry.names())
    for dataset in table.datasets:
        if dataset.task not in known:
            with broken.skip_on_error(dataset.task, skip_broken):
                register_task(dataset)
                known.add(dataset.task)
    for name, submixture in table.submixtures.items():
        rows = [row for row in table.of(name) if row.task in known]
        if rows and not submixture.mixture and name not in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.add(name, [(row.task, _rate(row, submixture.cap)) for row in rows])
    for name, shares in table.mixtures.items():
        parts = {table.submixtures[part].mixture or part: share for part, share in shares.items()}
        available = [(part, share) for part, share in parts.items() if part in seqio.MixtureRegistry.names()]
        replace_mixture(name, available)
        broken.note(name, missing(name))


def _rate(row: Dataset, cap: int) -> ByExamples | float:
    return ByExamples(row.cap or cap, times=row.times) if row.rate is None else row.rate


def register_task(dataset: Dataset) -> None:
    """Registers the task of one row without reading its data."""
    import seqio

    from t5flan.data.vocabulary.seqio_vocabulary import text_features
    from t5flan.tasks.flan.sources import read_items, source_of

    source = source_of(dataset)
    instruct = Instruct(
        wordings_of(dataset),
        exemplars=functools.partial(read_items, dataset, source),
        shuffle_options=dataset.fixed_options,
    )
    seqio.TaskRegistry.add(
        dataset.task,
        source=source,
        preprocessors=[to_items.bind(dataset=dataset), instruct, tokenize, append_eos],
        output_features=text_features(),
        postprocess_fn=postprocess,
        metric_fns=[exact_match, squad],
    )


def postprocess(text: str, is_target: bool = False, **_: object) -> str:
    """The answer in a target or a model's output: the text after `So the answer is`, or all of it."""
    return extract_answer(text)


def parts(mixture: str) -> dict[str, dict[str, Any]]:
    """What a published mixture has here, by submixture; {} for any other mixture.

    Returns:
        {submixture: {'share', 'here' (the tasks here), 'data_sets' (how many of TFDS and of the hub they read),
        'missing' {data set: why}, 'tasks' (as `counted` in published.py)}}. niv2 and cot are what the files hold.
    """
    table = load_table()
    found: dict[str, dict[str, Any]] = {}
    if mixture not in table.mixtures:
        return found
    import seqio

    for name, share in table.mixtures[mixture].items():
        part = table.submixtures[name]
        registered = name_of(part) in seqio.MixtureRegistry.names()
        here = [task.name for task in seqio.MixtureRegistry.get(name_of(part)).tasks] if registered else []
        lost = {row.name: row.reason for row in table.left_out if row.submixture in (name, *part.holds)}
        if part.mixture and not registered:
            lost['all'] = f'no files are given; set {part.setting}'
        sources = {row.tfds or row.hub for row in table.of(name) if row.task in here}
        found[name] = {
            'share': share,
            'here': here,
            'data_sets': None if part.mixture else len(sources),
            'missing': lost,
            'tasks': counted(part, here),
        }
    return found


def name_of(part: Submixture) -> str:
    """The mixture of a submixture."""
    return part.mixture or part.name


def require_complete(mixtures: Iterable[str], redistribute: bool) -> None:
    """Raises a UserError if a published mixture among `mixtures` lacks a whole submixture, without `redistribute`."""
    for mixture in () if redistribute else sorted(mixtures):
        found = parts(mixture)
        if lost := [name for name, part in found.items() if 'all' in part['missing']]:
            shares = ', '.join(f'{name} ({found[name]["share"]:.0%})' for name in lost)
            fix = ', '.join(load_table().submixtures[name].setting.partition(' ')[0] for name in lost)
            problem = f'{mixture} lacks {shares}: no files are given'
            raise UserError(f'{problem}. Set {fix}, or DataConfig.flan_redistribute = True to share their rates.')


def missing(mixture: str) -> list[str]:
    """Why a mixture is incomplete, compared with the published one: a line per missing part, then per reason."""
    import seqio

    table = load_table()
    shares = table.mixtures.get(mixture, {mixture: 1.0})
    lines = []
    for name, share in shares.items():
        part = table.submixtures[name]
        if part.mixture and part.mixture not in seqio.MixtureRegistry.names():
            lines.append(f'{name} ({share:.0%}): no files are given. Set {part.setting}; the others share its rate.')
    names = {held for name in shares for held in (name, *table.submixtures[name].holds)}
    by_reason: dict[str, list[str]] = {}
    for row in table.left_out:
        if row.submixture in names:
            by_reason.setdefault(row.reason, []).append(f'{row.submixture}_{row.name}')
    return lines + [f'{", ".join(left_out)}: {reason}.' for reason, left_out in by_reason.items()]
