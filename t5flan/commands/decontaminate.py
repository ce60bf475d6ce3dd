"""`t5flan decontaminate`: removes training examples that overlap with evaluation sets."""

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import COUNT, COUNT_FROM_0, SHARE, Command, Flag, words
from t5flan.errors import UsageError, UserError

if TYPE_CHECKING:
    from t5flan.corpora.decontamination import Evaluation


def run(arguments: argparse.Namespace) -> None:
    """Writes the training examples that overlap with no evaluation set, and a report of each set."""
    from rich.console import Console
    from rich.table import Table

    from t5flan.corpora.decontamination import Overlap, decontaminate, evaluation_files

    if not (arguments.evaluation or arguments.task or arguments.benchmark):
        raise UsageError(
            'set --evaluation=GLOB, --task=NAME or --benchmark=NAME=DIR (see `t5flan decontaminate --help`)'
        )
    overlap = Overlap(arguments.ngram, arguments.min_words, arguments.share, arguments.frequent)
    evaluations = [evaluation_files(pattern, arguments.evaluation_fields) for pattern in arguments.evaluation or ()]
    evaluations += _tasks(arguments) if arguments.task else []
    evaluations += [_benchmark(given) for given in arguments.benchmark or ()]
    path = arguments.json or arguments.output.removesuffix('.jsonl') + '.report.json'
    report = decontaminate(
        arguments.input,
        arguments.output,
        evaluations,
        fields=arguments.fields,
        unit=arguments.unit,
        overlap=overlap,
        report_file=path,
    )
    table = Table(title='overlap with training examples', title_justify='left')
    for column in ('evaluation set', 'examples', 'too short', 'found', 'share', 'training examples removed'):
        table.add_column(column, justify='left' if column == 'evaluation set' else 'right')
    for name, entry in report['evaluations'].items():
        numbers = (f'{entry[key]:,}' for key in ('examples', 'too_short', 'found'))
        table.add_row(name, *numbers, f'{entry["share"]:.1%}', f'{entry["removed"]:,}')
    Console(width=120).print(table)
    for match in report['removed'][: arguments.shown]:
        print(f'{match["text"]}: {match["ngrams"]} n-grams of {match["of"]}: {match["ngram"]!r}')
    print(
        f'{arguments.output}: kept {report["kept"]:,} of {report["examples"]:,} examples; the rest is listed in {path}'
    )


def _tasks(arguments: argparse.Namespace) -> 'list[Evaluation]':
    """The tasks that --task names, with the settings' files and modules registered."""
    from t5flan import configurables
    from t5flan.commands.startup import register_tasks
    from t5flan.data.config import DataConfig

    settings = configurables.parse(arguments.gin_file, [*arguments.gin, 'DataConfig.stages=[]'])
    lengths = {'inputs': 512, 'targets': 512}
    defaults: dict[str, Any] = {'mixture': '-', 'vocabulary': 'bytes', 'batch_size': 1, 'feature_lengths': lengths}
    if not settings.binds(DataConfig, 'vocabulary'):
        defaults['mode_tokens'] = ('[NLU]', '[NLG]', '[S2S]')
    settings.set_defaults(DataConfig, defaults, 't5flan decontaminate')
    data = settings.read(DataConfig, 'decontaminate')

    register_tasks(data, arguments.task)
    from t5flan.corpora.decontamination import Evaluation
    from t5flan.data.mixtures.mixing import find_mixture, tasks_of

    tasks = {task.name: task for name in arguments.task for task in tasks_of(find_mixture(name, '--task'))}
    return [Evaluation(name, _examples(task, arguments.split), '--task') for name, task in tasks.items()]


def _examples(task: Any, split: str | None) -> Iterator[tuple[str, list[str]]]:
    """The examples of a task as its source has them, before prompts are added."""
    from t5flan.corpora.decontamination import texts_in
    from t5flan.data.records.sources import IndexedSource

    split = split or next((name for name in ('test', 'validation') if name in task.splits), '')
    if split not in task.splits:
        raise UserError(
            f'task {task.name} has no split {split or "test"!r}; it has {", ".join(task.splits)}. Set --split.'
        )
    examples: Iterator[Any]
    if isinstance(task.source, IndexedSource):
        records = task.source.flat_records(split)
        examples = (records[i] for i in range(len(records)))
    else:
        from t5flan.data.records.tf_values import plain_value

        examples = map(plain_value, task.source.get_dataset(split, shuffle=False).as_numpy_iterator())
    for number, example in enumerate(examples, 1):
        yield f'{task.name} {split} {number}', list(texts_in(example))


def _benchmark(given: str) -> 'Evaluation':
    """The questions of a public benchmark in a folder, given as NAME=DIR."""
    from t5flan.corpora.decontamination import Evaluation, texts_in
    from t5flan.tasks.benchmarks import find

    name, _, folder = given.partition('=')
    if not folder:
        raise UsageError(f'--benchmark={given} must be NAME=DIR, such as gsm8k=data/gsm8k')
    benchmark, folder = find(name), os.path.expanduser(folder)
    questions = (one for task in benchmark.tasks(folder) for one in benchmark.questions(folder, task))
    examples = ((f'{one.task} {one.index}', [one.text, *texts_in(one.target)]) for one in questions)
    return Evaluation(name, examples, '--benchmark')


EVALUATION_HELP = 'evaluation files, text or rows; may be given several times'
TASK_HELP = 'a task or mixture to evaluate on; may be given several times'
BENCHMARK_HELP = 'a public benchmark of `t5flan score` and the folder of its release; may be given several times'
SPLIT_HELP = 'split of --task (default: test, or validation if there is no test)'
FIELDS_HELP = 'fields of training rows to compare, separated by commas (default: all texts of a row, at any depth)'
EVALUATION_FIELDS_HELP = 'the same for rows of --evaluation, e.g. question (default: all texts of a row)'
NGRAM_HELP = 'n-gram length in words; in characters where a script has no spaces (default: 13)'
MIN_WORDS_HELP = 'words that a shorter evaluation text needs to count as one n-gram (default: 8)'
SHARE_HELP = "share of an evaluation example's n-grams that must be found; 0: one is enough (default: 0.0)"
FREQUENT_HELP = 'n-grams that more than N training examples have do not count; 0: all count (default: 0)'
COMMAND = Command(
    'decontaminate',
    'removes training examples that overlap with evaluation sets, with a report on each set',
    run,
    gin=True,
    example="t5flan decontaminate --input='train/*.jsonl' --evaluation=gsm8k_test.jsonl --output=clean.jsonl",
    flags=(
        Flag('--input', 'training files, text or rows; may be given several times', 'GLOB', required=True, many=True),
        Flag('--output', 'a .jsonl file of the examples that are kept', 'F.jsonl', required=True, writes='file'),
        Flag('--evaluation', EVALUATION_HELP, 'GLOB', many=True),
        Flag('--task', TASK_HELP, 'NAME', many=True),
        Flag('--benchmark', BENCHMARK_HELP, 'NAME=DIR', many=True),
        Flag('--split', SPLIT_HELP, 'NAME'),
        Flag('--fields', FIELDS_HELP, 'A,B', words, ''),
        Flag('--evaluation_fields', EVALUATION_FIELDS_HELP, 'A,B', words, ''),
        Flag(
            '--unit',
            'one example in a .txt file: document, paragraph or line (default: document)',
            'UNIT',
            str,
            'document',
        ),
        Flag(
            '--ngram',
            'n-gram length in words; in characters where a script has no spaces (default: 13)',
            'N',
            COUNT,
            13,
        ),
        Flag('--min_words', MIN_WORDS_HELP, 'N', COUNT_FROM_0, 8),
        Flag('--share', SHARE_HELP, 'X', SHARE, 0.0),
        Flag('--frequent', FREQUENT_HELP, 'N', COUNT_FROM_0, 0),
        Flag('--shown', 'overlaps to print; the report lists all (default: 10)', 'N', COUNT_FROM_0, 10),
        Flag('--json', 'report file (default: beside the output, as .report.json)', 'FILE', writes='file'),
    ),
)
