"""`t5flan deduplicate`: removes exact and near duplicates from a text corpus."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.files import write_json


def run(arguments: argparse.Namespace) -> None:
    """Writes a corpus without its duplicates, and a report of what was removed and why."""
    from t5flan.corpora.deduplication import Rules, deduplicate

    rules = Rules(arguments.threshold, arguments.ngram, arguments.permutations)
    report = deduplicate(arguments.input, arguments.output, arguments.field, arguments.unit, rules)
    for one in report['removed'][: arguments.shown]:
        print(f'{one["text"]}: {one["why"]}, {one["similarity"]:.0%} of {one["of"]}: {one["begins"]!r}')
    path = arguments.json or arguments.output.removesuffix('.jsonl') + '.report.json'
    write_json(path, report)
    print(
        f'{arguments.output}: kept {report["kept"]:,} of {report["texts"]:,} texts, {report["characters_kept"]:,} of '
        f'{report["characters"]:,} characters; removed {report["exact"]:,} exact and {report["near"]:,} near '
        f'duplicates, listed in {path}'
    )


UNIT_HELP = 'what counts as one text in a .txt file: document, paragraph or line (default: document)'
THRESHOLD_HELP = 'share of common n-grams that makes two texts near duplicates; 1: exact only (default: 0.8)'
COMMAND = Command(
    'deduplicate',
    'removes exact and near duplicates from a text corpus, and reports what was removed',
    run,
    example="t5flan deduplicate --input='crawl/*.jsonl' --output=crawl_once.jsonl",
    flags=(
        Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
        Flag('--output', 'a .jsonl file of the texts that are kept', 'F.jsonl', required=True, writes='file'),
        Flag('--field', 'field of the .jsonl rows that holds the text (default: text)', 'NAME', default='text'),
        Flag('--unit', UNIT_HELP, 'UNIT', default='document'),
        Flag('--threshold', THRESHOLD_HELP, 'X', float, 0.8),
        Flag('--ngram', 'n-gram length in words (default: 5)', 'N', int, 5),
        Flag('--permutations', 'MinHash permutations; more is more accurate but slower (default: 128)', 'N', int, 128),
        Flag('--shown', 'duplicates to print; the report lists all (default: 10)', 'N', int, 10),
        Flag('--json', 'report file (default: beside the output, as .report.json)', 'FILE', writes='file'),
    ),
)
