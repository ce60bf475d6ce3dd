"""`t5flan deduplicate`: writes a corpus without its repetitions, and what was left out and why."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.files import write_json


def run(arguments: argparse.Namespace) -> None:
    """Writes a corpus without its repetitions, and what was left out and why."""
    from t5flan.corpora.deduplication import Rules, deduplicate

    rules = Rules(arguments.threshold, arguments.ngram, arguments.permutations)
    report = deduplicate(arguments.input, arguments.output, arguments.field, arguments.unit, rules)
    for one in report['removed'][: arguments.shown]:
        print(f'{one["text"]}: {one["why"]}, {one["similarity"]:.0%} of {one["of"]}: {one["begins"]!r}')
    path = arguments.json or arguments.output.removesuffix('.jsonl') + '.report.json'
    write_json(path, report)
    print(
        f'{arguments.output}: {report["kept"]:,} of {report["texts"]:,} texts, {report["characters_kept"]:,} of '
        f'{report["characters"]:,} characters; left out {report["exact"]:,} exact and {report["near"]:,} near '
        f'repetitions, all of them named in {path}'
    )


COMMAND = Command(
    'deduplicate',
    'writes a text corpus without exact and near repetitions, and a report of what was left out',
    run,
    example="t5flan deduplicate --input='crawl/*.jsonl' --output=crawl_once.jsonl",
    flags=(
        Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
        Flag('--output', 'a .jsonl of the rows that are kept', 'F.jsonl', required=True),
        Flag('--field', 'of .jsonl files, that holds the text (text)', 'NAME', default='text'),
        Flag(
            '--unit',
            'what is one text in a .txt file: document, paragraph or line (document)',
            'UNIT',
            default='document',
        ),
        Flag(
            '--threshold',
            'share of n-grams in common that makes a near repetition; 1: exact ones alone (0.8)',
            'X',
            float,
            0.8,
        ),
        Flag('--ngram', 'words of an n-gram (5)', 'N', int, 5),
        Flag('--permutations', 'of MinHash; more is more exact and slower (128)', 'N', int, 128),
        Flag('--shown', 'repetitions printed; the report has all (10)', 'N', int, 10),
        Flag('--json', 'the report; beside the output as .report.json', 'FILE'),
    ),
)
