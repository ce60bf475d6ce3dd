"""`t5flan mixture NAME`: what a task or mixture contains, before anything is trained on it."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from t5flan.data import skipped
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import caps, find_mixture
from t5flan.data.mixtures.readers import LARGEST_BLOCK, Reader, example_functions
from t5flan.data.mixtures.stages import Plan, make_plan
from t5flan.data.mixtures.unknown_pieces import unknown_lines
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.denoising import span_pieces
from t5flan.data.preprocessing.examples import Example
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.files import write_json
from t5flan.training.description import with_prompt_format

SAMPLE, SAMPLES = 100, 4000
"""Examples measured of each task, and of all tasks together: fewer of each if there are many tasks."""
MEASURED = ('input_tokens', 'target_tokens', 'target_share', 'loss_tokens', 'too_long', 'few_sentinels')
COLORS = ('green', 'cyan', 'magenta', 'yellow', 'blue', 'red')
"""Colors of spans, in turn."""
MARKS = '⟦', '⟧'
"""Mark the tokens that carry loss on a terminal without colors."""


def describe_mixture(
    config: DataConfig, vocabulary: Vocabulary, sample: int | None = None, shown: int | None = None
) -> dict[str, Any]:
    """Rates, counts, lengths, variants and a few examples of `config.mixture` and its stages, as training sees them.

    Args:
        config: the run's data settings.
        vocabulary: the run's vocabulary.
        sample: examples to measure of each task; None takes SAMPLE, or fewer (at least 2) to make SAMPLES in all. 0
            reads nothing and returns rates, counts and caps only, also for data that is not on this machine.
        shown: examples to render, each of another task; None renders 3, or one of each denoiser.

    Returns:
        {'mixture', 'split', 'vocabulary': {'path', 'size'}, 'stages': [{'start_step', 'mixture'}],
        'skipped': {task: why}, 'notes': {mixture: [line]},
        'tasks': [{'task', 'rates' (of each stage), 'rate' (the first), 'records', 'cap', 'sampled', 'input_tokens',
        'target_tokens', 'target_share', 'loss_tokens', 'too_long', 'few_sentinels', 'variants': {variant: count}}],
        'unknown': [line], 'examples': [{'task', 'variant', 'inputs', 'targets', 'marked', 'spans'}]}.

        Tokens are means and include the end of sequence. 'too_long' is the share of examples longer than the feature
        lengths, 'few_sentinels' the share of windows made shorter because spans would outnumber the sentinels.
        'records' and 'cap' may be None. 'marked' is the example as (text, whether it carries loss) in order. 'spans' is
        the text of a span corruption example as (text, number of the sentinel in its place or None).

    Raises:
        UserError: as TrainPipeline.
    """
    config = dataclasses.replace(config, too_long='trim')  # dropped examples could not be measured
    plain = dataclasses.replace(config, format='causal_lm')  # any task can be described, whatever the format
    plan = make_plan(plain, vocabulary, opened=sample != 0)
    capped = {name: cap for mixture in _names(config) for name, cap in caps(find_mixture(mixture)).items()}
    if shown is None:
        shown = len(plan.tasks) if all(map(_is_denoiser, plan.tasks)) else 3
    sample = max(2, min(SAMPLE, SAMPLES // len(plan.tasks))) if sample is None else sample
    chosen = {int(number) for number in np.linspace(0, len(plan.tasks) - 1, min(shown, len(plan.tasks))).round()}
    tasks, examples, not_measured = [], [], dict(plan.skipped)
    for number, task in enumerate(plan.tasks):
        try:
            row, made = _measure(task, config if 'inputs' in task.output_features else plain, vocabulary, sample)
        except UserError as error:
            if not config.skip_broken:
                raise
            not_measured[task.name] = str(error)
            continue
        rates = [float(rate) for rate in plan.rates[:, number]]
        counts = {'records': _records(task, config.split), 'cap': capped.get(task.name)}
        tasks.append({'task': task.name, 'rate': rates[0], 'rates': rates} | counts | row)
        if number in chosen:
            rendered = _different(made, max(1, shown // len(chosen)))
            examples += [{'task': task.name} | _rendered(example, vocabulary) for example in rendered]
    return {
        'mixture': config.mixture,
        'split': config.split,
        'vocabulary': {'path': config.vocabulary, 'size': vocabulary.vocab_size},
        'stages': _stages(config, plan),
        'skipped': not_measured,
        'notes': {name: lines for name in _names(config) if (lines := skipped.notes(name))},
        'tasks': tasks,
        'unknown': unknown_lines(config, vocabulary, plan) if sample else [],
        'examples': examples,
    }


def _is_denoiser(task: Any) -> bool:
    return any('denoiser' in function.options for function in example_functions(task) or ())


def _names(config: DataConfig) -> list[str]:
    return [config.mixture, *(stage.mixture for stage in config.stages), *config.mixed_in]


def _stages(config: DataConfig, plan: Plan) -> list[dict[str, Any]]:
    mixtures = [config.mixture, *(stage.mixture for stage in config.stages)]
    return [{'start_step': step, 'mixture': name} for step, name in zip(plan.start_steps, mixtures, strict=True)]


def _measure(
    task: Any, config: DataConfig, vocabulary: Vocabulary, sample: int
) -> tuple[dict[str, Any], list[Example]]:
    """The measurements of a task's first `sample` examples, and these examples."""
    if not sample:
        return {'sampled': 0, **dict.fromkeys(MEASURED), 'variants': {}}, []
    reader = Reader(task, config, vocabulary, epochs=1, ahead=min(sample, LARGEST_BLOCK))
    tokens: collections.Counter[str] = collections.Counter()
    variants: collections.Counter[str] = collections.Counter()
    made: list[Example] = []
    while len(made) < sample and (ready := reader.peek()) is not None:
        reader.pop()
        made.append(ready.example)
        weights = ready.example.get(features.LOSS_WEIGHTS)
        tokens.update(ready.lengths)
        tokens['long'] += ready.counts.trimmed
        tokens['few'] += bool(ready.example.get('few_sentinels'))
        tokens['loss'] += len(ready.example['targets']) if weights is None else int(np.count_nonzero(weights))
        if variant := ready.example.get('variant'):
            variants[str(variant)] += 1
    count = max(1, len(made))
    means = [round(tokens[feature] / count, 1) for feature in ('inputs', 'targets', 'loss')]
    row = {
        'sampled': len(made),
        **dict(zip(('input_tokens', 'target_tokens', 'loss_tokens'), means)),
        'target_share': tokens['targets'] / max(1, tokens['inputs'] + tokens['targets']),
        'too_long': tokens['long'] / count,
        'few_sentinels': tokens['few'] / count,
        'variants': dict(variants.most_common()),
    }
    return row, made


def _different(made: Sequence[Example], count: int) -> list[Example]:
    """The first `count` examples, with those of new variants first."""
    firsts: dict[Any, int] = {}
    for number, example in enumerate(made):
        firsts.setdefault(example.get('variant'), number)
    order = [*firsts.values(), *(number for number in range(len(made)) if number not in firsts.values())]
    return [made[number] for number in order[:count]]


def _rendered(example: Example, vocabulary: Vocabulary) -> dict[str, Any]:
    """An example's text, whole and in pieces that carry loss or not."""
    texts = {name: _text(example[name], vocabulary) for name in ('inputs', 'targets') if name in example}
    targets = np.asarray(example['targets'])
    weights = np.asarray(example.get(features.LOSS_WEIGHTS, np.ones(len(targets)))) > 0
    edges = [0, *(np.flatnonzero(weights[1:] != weights[:-1]) + 1).tolist(), len(targets)]
    marked = [[texts['inputs'], False]] if 'inputs' in texts else []
    marked += [
        [_text(targets[start:end], vocabulary), bool(weights[start])]
        for start, end in zip(edges, edges[1:])
        if end > start
    ]
    return {'variant': example.get('variant')} | texts | {'marked': marked} | _spans(example, vocabulary)


def _text(ids: np.ndarray, vocabulary: Vocabulary) -> str:
    """The text of all ids; an end of sequence inside, as of the turns of a chat, ends no text and is not spelled."""
    ids_T = np.asarray(ids)
    ends = np.flatnonzero(ids_T == vocabulary.eos_id) + 1
    return ''.join(vocabulary.decode(part) for part in np.split(ids_T, ends))


def _spans(example: Example, vocabulary: Vocabulary) -> dict[str, Any]:
    """{'spans': ...} of a span corruption example, else {}."""
    in_bytes = vocabulary.kind == 'bytes' and not vocabulary.extra_ids  # ByT5's sentinels are bytes
    if in_bytes or not vocabulary.sentinel_ids or 'inputs' not in example:
        return {}
    kept = [np.asarray(example[name])[np.asarray(example[name]) != vocabulary.eos_id] for name in ('inputs', 'targets')]
    inputs_T = kept[0][~np.isin(kept[0], vocabulary.marker_ids)]
    sentinels = [set(x_T[np.isin(x_T, vocabulary.sentinel_ids)].tolist()) for x_T in (inputs_T, kept[1])]
    if not sentinels[0] or not sentinels[0] <= sentinels[1]:
        return {}
    pieces = span_pieces(inputs_T, kept[1], vocabulary)
    tokens_T = np.concatenate([tokens for tokens, _ in pieces])
    text, ends = vocabulary.decode(tokens_T), np.cumsum([len(tokens) for tokens, _ in pieces]).tolist()
    # Decoding a piece alone would lose the space before it: cut the whole text where the tokens before the piece end.
    cuts = [0, *(len(vocabulary.decode(tokens_T[:end])) for end in ends[:-1]), len(text)]
    return {'spans': [[text[start:end], number] for (_, number), start, end in zip(pieces, cuts, cuts[1:])]}


def _records(task: Any, split: str) -> int | None:
    try:
        return task.num_input_examples(split)
    except Exception:
        return None


# -- The table ------------------------------------------------------------------------------------------------------


def main(
    config: DataConfig,
    json_path: str | None = None,
    sample: int | None = None,
    shown: int | None = None,
    source: str | None = None,
    submixtures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Prints a table of `describe_mixture`, and writes it to `json_path` if given. The tasks must be registered.

    Args:
        source: the checkpoint that the run starts from, which determines the prompt format 'auto'.
        submixtures: what a published mixture has here and what it lacks, to print and to add to the description.
    """
    from rich.console import Console

    vocabulary = load_vocabulary(config.vocabulary, config.extra_ids, config.mode_tokens, config.added_tokens)
    config = with_prompt_format(None, config, vocabulary, source)
    description = describe_mixture(config, vocabulary, sample, shown)
    if submixtures:
        description['submixtures'] = dict(submixtures)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file is as wide as needed
    console.print(_table(description))
    known = f'Tokens are those of the vocabulary {config.vocabulary} ({vocabulary.vocab_size:,} ids).'
    console.print(known, soft_wrap=True, markup=False, highlight=False)
    for example in description['examples']:
        _print_example(console, example)
    if description['examples'] and not console.color_system:
        console.print(f'\n{"".join(MARKS)} mark text that carries loss, or a span with the number of its sentinel.')
    problems = [*description['unknown'], *skipped.summary(description['skipped']), *skipped.left_out_lines()]
    for line in _published_lines(submixtures or {}):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    for line in [*problems, *skipped.note_lines(description['notes'])]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if json_path:
        write_json(json_path, description)
    return description


def _published_lines(submixtures: Mapping[str, Any]) -> list[str]:
    """What is here of a published mixture, and of each of its submixtures."""
    lines, total = [], {'here': 0, 'published': 0}
    for name, part in submixtures.items():
        tasks = part['tasks']
        total = {key: count + tasks[key] for key, count in total.items()}
        sets = f' from {part["data_sets"]} data sets' if part['data_sets'] else ''
        published = f'{tasks["here"]:,} of {tasks["published"]:,} published tasks'
        lines.append(f'{name} ({part["share"]:.0%}): {len(part["here"]):,} tasks here{sets} for {published}')
    return [*lines, f'all: {total["here"]:,} of {total["published"]:,} published tasks'] if lines else []


def _table(description: Mapping[str, Any]) -> Any:
    from rich.table import Table

    tasks, stages = description['tasks'], description['stages']
    title = ', then '.join(stage['mixture'] for stage in stages)
    count = f'{len(tasks):,} {"task" if len(tasks) == 1 else "tasks"}'
    table = Table(title=f'{title}, split {description["split"]}: {count}')
    rates = ['rate'] if len(stages) == 1 else [f'rate from {stage["start_step"]:,}' for stage in stages]
    measured = ['input tokens', 'target tokens', 'targets', 'too long', 'few sentinels']
    columns = ['task', 'examples', 'cap', *rates, *measured, 'variants']
    all_tasks = [_total(tasks)] if len(tasks) > 1 else []
    rows = [[row['task'], *_cells(row), _axes(row['variants'])] for row in [*tasks, *all_tasks]]
    optional = ('cap', 'few sentinels', 'variants')
    shown = [i for i, column in enumerate(columns) if column not in optional or any(row[i] for row in rows)]
    for i in shown:
        is_text = columns[i] in ('task', 'variants')
        overflow: Literal['fold', 'ellipsis'] = 'fold' if columns[i] == 'task' else 'ellipsis'
        table.add_column(columns[i], justify='left' if is_text else 'right', overflow=overflow)
    for number, row in enumerate(rows, 1):
        table.add_row(*(row[i] for i in shown), end_section=number == len(tasks))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    number = lambda value: '?' if value is None else f'{value:,}'
    measured = [
        (row['input_tokens'], '.1f'),
        (row['target_tokens'], '.1f'),
        (row['target_share'], '.0%'),
        (row['too_long'], '.0%'),
        (row['few_sentinels'] or None, '.0%'),
    ]
    return [
        number(row['records']),
        '' if row['cap'] is None else number(row['cap']),
        *(f'{rate:.2%}' for rate in row['rates']),
        *('' if value is None else f'{value:{form}}' for value, form in measured),
    ]


def _total(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All tasks as one row: sums of counts, means at the first stage's rates."""
    rates = np.array([row['rate'] for row in tasks])
    variants: dict[str, float] = collections.defaultdict(float)
    for row in tasks:
        for variant, count in row['variants'].items():
            variants[variant] += row['rate'] * count / row['sampled']
    records = [row['records'] for row in tasks]
    total: dict[str, Any] = {
        'task': 'all',
        'records': None if None in records else sum(records),
        'cap': None,
        'variants': variants,
        'rates': [sum(stage) for stage in zip(*(row['rates'] for row in tasks))],
    }
    for name in ('input_tokens', 'target_tokens', 'target_share', 'too_long', 'few_sentinels'):
        values = [row[name] for row in tasks]
        total[name] = None if None in values else float(rates @ values)
    return total


def _axes(variants: Mapping[str, float]) -> str:
    """'few-shot 48%, options 31%': the share of each property of the variants, largest first."""
    total = sum(variants.values())
    words: dict[str, float] = collections.defaultdict(float)
    for variant, count in variants.items():
        for word in variant.split(', '):
            words[word] += count
    ordered = sorted(words.items(), key=lambda item: item[1], reverse=True)
    return ', '.join(f'{word} {count / total:.0%}' for word, count in ordered)


def _print_example(console: Any, example: Mapping[str, Any]) -> None:
    from rich.text import Text

    variant = f' ({example["variant"]})' if example['variant'] else ''
    console.print(Text(f'\n{example["task"]}{variant}', style='bold'))
    text = Text()
    for number, (piece, loss) in enumerate(example['marked']):
        text.append('\n' if number == 1 and 'inputs' in example else ' ' * bool(number))
        if not loss:
            text.append(piece)
        elif console.color_system:
            text.append(piece, style='bold green')
        else:
            text.append(piece.join(MARKS))
    if spans := example.get('spans'):
        console.print(_colored_spans(spans, bool(console.color_system)), soft_wrap=True)
    console.print(text, soft_wrap=True)


def _colored_spans(spans: Sequence[Sequence[Any]], colors: bool) -> Any:
    """The original text, with each span in its own color or followed by its number."""
    from rich.text import Text

    text = Text()
    for piece, number in spans:
        if number is None:
            text.append(piece)
        elif colors:
            text.append(piece, style=f'bold reverse {COLORS[number % len(COLORS)]}')
        else:
            text.append(f'{piece.join(MARKS)}{number}')
    text.append('\n')
    return text
