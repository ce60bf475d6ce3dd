"""`t5flan deduplicate`: removes what repeats in a text corpus."""

import argparse

from t5flan.commands.arguments import COUNT, COUNT_FROM_0, POSITIVE, Command, Flag
from t5flan.config.checks import Limits
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Writes a corpus without its duplicates, and a report of what was removed and why."""
    from t5flan.corpora.deduplication import Cuts, Rules, deduplicate

    rules = Rules(arguments.threshold, arguments.ngram, arguments.permutations)
    path = arguments.json or arguments.output.removesuffix('.jsonl') + '.report.json'
    cuts = Cuts(
        arguments.compare, arguments.min_length, arguments.boilerplate, arguments.substring, memory=arguments.memory
    )
    given = (arguments.input, arguments.output, arguments.field, arguments.unit, rules)
    if arguments.pipeline_options:
        from t5flan.corpora.beam_deduplication import deduplicate_with_beam

        if cuts != Cuts(memory=cuts.memory):
            raise UsageError('--pipeline_options works without --compare, --min_length, --boilerplate and --substring')
        report = deduplicate_with_beam(*given, path, arguments.pipeline_options)
    else:
        report = deduplicate(*given, cuts, path)
    for one in report['removed'][: arguments.shown]:
        print(f'{one["text"]}: {one["why"]}, {one["similarity"]:.0%} of {one["of"]}: {one["begins"]!r}')
    for name, what in (('boilerplate', 'lines'), ('passages', 'passages')):
        if name in report:
            print(f'cut {report[name][what]:,} {what} ({report[name]["characters"]:,} characters) of {name}')
    compared = f'{cuts.compare}s'
    print(
        f'{report.get("files", arguments.output)}: kept {report["kept"]:,} of {report["texts"]:,} {compared}, '
        f'{report["characters_kept"]:,} of {report["characters"]:,} characters; removed {report["exact"]:,} exact and '
        f'{report["near"]:,} near duplicates, listed in {path}'
    )


UNIT_HELP = 'what counts as one text in a .txt file: document, paragraph or line (default: document)'
COMPARE_HELP = (
    'what is removed if it is a copy: text, or paragraph or line, of which each text gets back those that are left '
    '(default: text)'
)
FIELD_HELP = "field of the rows that holds the text; 'question.text' is nested (default: text)"
MIN_LENGTH_HELP = 'characters; shorter texts, paragraphs and lines are never removed (default: 0)'
BOILERPLATE_HELP = 'cut lines that at least N texts have from all of them; 0: none (default: 0)'
SUBSTRING_HELP = 'cut passages of at least N characters that occurred before; 0: none (default: 0)'
MEMORY_HELP = 'GiB that --substring may sort at once; with less, it reads the input more often (default: 2.0)'
THRESHOLD_HELP = 'share of common n-grams that makes two texts near duplicates; 1: exact only (default: 0.8)'
NGRAM_HELP = 'n-gram length in words; in characters where a script has no spaces (default: 5)'
PERMUTATIONS_HELP = 'MinHash permutations; more miss fewer duplicates but take longer (default: 128)'
OPTIONS_HELP = (
    'run with Beam, e.g. --pipeline_options=--runner=DataflowRunner; may be given several times; writes one file for '
    'each input file (default: run on this machine)'
)
COMMAND = Command(
    'deduplicate',
    'removes exact and near duplicates, boilerplate and repeated passages from a text corpus, with a report',
    run,
    example="t5flan deduplicate --input='crawl/*.jsonl' --output=crawl_once.jsonl",
    flags=(
        Flag('--input', '.txt files or files of rows; may be given several times', 'GLOB', required=True, many=True),
        Flag('--output', 'a .jsonl file of the texts that are kept', 'F.jsonl', required=True, writes='file'),
        Flag('--field', FIELD_HELP, 'NAME', default='text'),
        Flag('--unit', UNIT_HELP, 'UNIT', default='document'),
        Flag('--compare', COMPARE_HELP, 'PART', default='text'),
        Flag('--threshold', THRESHOLD_HELP, 'X', Limits(0, 1, above=True), 0.8),
        Flag('--ngram', NGRAM_HELP, 'N', COUNT, 5),
        Flag('--permutations', PERMUTATIONS_HELP, 'N', Limits(1, 2**16, whole=True), 128),
        Flag('--min_length', MIN_LENGTH_HELP, 'N', COUNT_FROM_0, 0),
        Flag('--boilerplate', BOILERPLATE_HELP, 'N', COUNT_FROM_0, 0),
        Flag('--substring', SUBSTRING_HELP, 'N', COUNT_FROM_0, 0),
        Flag('--memory', MEMORY_HELP, 'X', POSITIVE, 2.0),
        Flag('--pipeline_options', OPTIONS_HELP, 'OPTION', many=True),
        Flag('--shown', 'duplicates to print; the report lists all (default: 10)', 'N', COUNT_FROM_0, 10),
        Flag('--json', 'report file (default: beside the output, as .report.json)', 'FILE', writes='file'),
    ),
)
