"""Deduplication with Beam, for corpora that outgrow one machine: the same result as `deduplicate`, from many workers.

    deduplicate_with_beam(['/data/*.jsonl'], '/data/once.jsonl', pipeline_options=['--runner=DataflowRunner', ...])

A first pipeline reads the files, groups exact copies, then texts with the same n-grams, then texts that share a MinHash
band, and compares the n-grams of every such pair. This machine decides from the pairs which texts stay, as if they came
one after the other; it holds only texts that repeat or are repeated. A second pipeline writes the texts of each input
file that stay to a file of their own: once-00000-of-00008.jsonl for the first of eight.

Files are the units of work, so a corpus should have more files than workers. They are local, on a disk that the workers
share, or in a bucket.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from t5flan.corpora.near_duplicates import MinHash, Rules, greedy_repeats, similarity
from t5flan.corpora.texts import SHOWN, ReportFile, Text, check_output, match_inputs, read_texts, write_row
from t5flan.corpora.words import hash_ngrams, hash_words
from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError
from t5flan.files import open_whole, to_path, write_json

_FILE = 2**40  # a text's number is that of its file times this, plus its place in the file
_MOST = 200  # texts of a bucket that the others in it are compared with
_COUNTS = ('texts', 'kept', 'exact', 'near', 'characters', 'characters_kept')

Carried = tuple[int, str, bytes]
"""A text in the first pipeline: its number, its place, and the 32-bit hashes of its n-grams, sorted."""
Copy = dict[str, Any]
"""Two texts that are alike: {'of', 'text': numbers, 'of_where', 'where': places, 'why', 'similarity'}."""


def deduplicate_with_beam(
    patterns: Sequence[str],
    output: str,
    field: str = 'text',
    unit: str = 'document',
    rules: Rules | None = None,
    report_file: str | None = None,
    pipeline_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the texts without copies of earlier ones, a file for each input file, and returns the report.

    Args:
        patterns, field, unit, rules, report_file: as for `deduplicate`.
        output: 'NAME.jsonl'; the files are NAME-00000-of-00008.jsonl and so on.
        pipeline_options: Beam's options, such as '--runner=DataflowRunner'.

    Raises:
        UserError: apache-beam is not installed, or as for `deduplicate`.
    """
    _check_beam()
    rules = rules or Rules()
    paths = [path for pattern in patterns for path in _match(pattern, unit)]
    check_output(output, [path for path in paths if '://' not in path], report_file)
    stem = output.removesuffix('.jsonl')
    scratch = to_path(f'{stem}.parts')
    _remove_left(str(scratch))
    scratch.mkdir(parents=True)
    try:
        _find_copies(paths, field, unit, rules, str(scratch), pipeline_options)
        _decide(str(scratch), len(paths))
        _write_texts(paths, field, unit, stem, str(scratch), pipeline_options)
        return _report(stem, str(scratch), len(paths), rules, report_file)
    finally:
        remove_folder(str(scratch))


def _check_beam() -> None:
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError(f"apache-beam is not installed ({error}). Run pip install 't5flan[beam]'.") from None


def remove_folder(path: str) -> None:
    """Removes a folder with its content; in a bucket too."""
    from t5flan.files.buckets import epath

    epath.Path(path).rmtree(missing_ok=True)


def _remove_left(scratch: str) -> None:
    """Removes the folder of a killed run.

    Raises:
        UserError: it has other files than such a run writes.
    """
    folder = to_path(scratch)
    if not folder.exists():
        return
    others = [
        path.name for path in folder.iterdir() if not re.match(r'(copies|removed|report)-|beam-temp|\.', path.name)
    ]
    if others:
        fix = 'Rename the folder, or set another --output'
        raise UserError(f'{scratch} has {min(others)!r}, which is not of a run that was killed. {fix}.')
    remove_folder(scratch)


def _match(pattern: str, unit: str) -> list[str]:
    if '://' not in pattern:
        return [os.path.abspath(path) for path in match_inputs([pattern], unit)]
    folder, _, name = pattern.rpartition('/')
    found = sorted(str(path) for path in to_path(folder).glob(name))
    if not found:
        raise UserError(f'--input={pattern!r} matches no file. Fix the glob in --input.')
    return found


# -- The first pipeline: pairs of texts that are alike ----------------------------------------------------------------


def _pipeline(options: Sequence[str]) -> Any:
    import apache_beam as beam

    try:
        return beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(list(options)))
    except ValueError as error:  # an unknown runner, or one that needs other options
        given, why = ' '.join(options), str(error).splitlines()[0]
        raise UserError(f'--pipeline_options={given}: {why} Set options that Beam knows.') from None


def _find_copies(
    paths: Sequence[str], field: str, unit: str, rules: Rules, scratch: str, options: Sequence[str]
) -> None:
    """Writes every pair of texts that are alike to SCRATCH/copies-*, as lines of JSON."""
    import apache_beam as beam

    with _pipeline(options) as pipeline:
        texts = (
            pipeline
            | 'files' >> beam.Create(list(enumerate(paths)))
            | 'spread' >> beam.Reshuffle()
            | 'read' >> beam.FlatMap(functools.partial(carry_texts, field=field, unit=unit, rules=rules))
        )
        firsts, exact = _split_groups(texts, 'exact')
        copies = [exact]
        if rules.threshold < 1:
            with_words = firsts | 'with words' >> beam.Filter(lambda text: bool(text[2]))
            keyed = with_words | 'by n-grams' >> beam.Map(lambda text: (_key(text[2]), text))
            distinct, same = _split_groups(keyed, 'near')
            copies += [same, _near_pairs(distinct, rules)]
        _ = (
            copies
            | 'all copies' >> beam.Flatten()
            | 'as JSON' >> beam.Map(functools.partial(json.dumps, ensure_ascii=True))
            | 'write copies' >> beam.io.WriteToText(f'{scratch}/copies')
        )


def _split_groups(keyed: Any, why: str) -> tuple[Any, Any]:
    """Of (key, text): the first text of each key, and the others as copies of it."""
    import apache_beam as beam

    groups = keyed | f'group {why}' >> beam.GroupByKey()
    firsts = groups | f'first {why}' >> beam.Map(lambda group: min(group[1]))
    copies = groups | f'copies {why}' >> beam.FlatMap(functools.partial(copies_in, why=why))
    return firsts, copies


def _near_pairs(distinct: Any, rules: Rules) -> Any:
    """The pairs of texts whose n-grams are alike."""
    import apache_beam as beam

    by_number = distinct | 'by number' >> beam.Map(lambda text: (text[0], (text[1], text[2])))
    pairs = (
        distinct
        | 'bands' >> beam.FlatMap(functools.partial(band_keys, minhash=MinHash(rules)))
        | 'buckets' >> beam.GroupByKey()
        | 'candidates' >> beam.FlatMap(pairs_in)
        | 'once' >> beam.Distinct()
    )
    with_first = (
        {'text': by_number, 'pairs': pairs}
        | 'join the first' >> beam.CoGroupByKey()
        | 'to the second' >> beam.FlatMap(send_to_second)
    )
    return (
        {'text': by_number, 'firsts': with_first}
        | 'join the second' >> beam.CoGroupByKey()
        | 'compare' >> beam.FlatMap(functools.partial(compare, threshold=rules.threshold))
    )


def carry_texts(file: tuple[int, str], field: str, unit: str, rules: Rules) -> Iterator[tuple[int, Carried]]:
    """(key of exact copies, text) of each text of a file."""
    for place, text in enumerate(_read(file[1], field, unit)):
        hashes = hash_ngrams(hash_words(text.text), rules.ngram) if rules.threshold < 1 else np.zeros(0, np.uint64)
        short = (np.unique(hashes) >> np.uint64(32)).astype(np.uint32)
        yield _key(' '.join(text.text.split())), (file[0] * _FILE + place, text.where, short.tobytes())


def _key(data: str | bytes) -> int:
    """A hash in the range of Beam's integers, which are signed."""
    return stable_hash(data) - 2**63


def copies_in(group: tuple[int, Iterable[Carried]], why: str) -> Iterator[Copy]:
    """Each text of a group but the first, as a copy of the first."""
    (first, first_where, _), *others = sorted(group[1])
    for text, where, _ in others:
        yield {'of': first, 'of_where': first_where, 'text': text, 'where': where, 'why': why, 'similarity': 1.0}


def band_keys(text: Carried, minhash: MinHash) -> Iterator[tuple[tuple[int, int], int]]:
    """((band, its key), number of the text)."""
    hashes = np.frombuffer(text[2], np.uint32).astype(np.uint64) << np.uint64(32)
    for band, key in enumerate(minhash.band_keys(minhash.values(hashes)).view(np.int64).tolist()):
        yield (band, key), text[0]


def pairs_in(bucket: tuple[Any, Iterable[int]]) -> Iterator[tuple[int, int]]:
    """The pairs (earlier, later) of a bucket; in a large one, each text with the first 200."""
    numbers = sorted(bucket[1])
    for first, number in enumerate(numbers[:_MOST]):
        yield from ((number, other) for other in numbers[first + 1 :])


def send_to_second(joined: tuple[int, dict[str, Any]]) -> Iterator[tuple[int, tuple[int, str, bytes]]]:
    """Sends the n-grams of a text to each later text that it is a candidate for."""
    number, parts = joined
    texts = list(parts['text'])
    for other in parts['pairs']:
        yield other, (number, *texts[0])


def compare(joined: tuple[int, dict[str, Any]], threshold: float) -> Iterator[Copy]:
    """The earlier texts that a text is near to."""
    number, parts = joined
    for where, ngrams in itertools.islice(parts['text'], 1):
        own_G = np.frombuffer(ngrams, np.uint32)
        for first, first_where, first_ngrams in parts['firsts']:
            alike = similarity(np.frombuffer(first_ngrams, np.uint32), own_G)
            if alike >= threshold:
                found = {'of': first, 'of_where': first_where, 'text': number, 'where': where}
                yield {**found, 'why': 'near', 'similarity': alike}


# -- On this machine: which texts stay --------------------------------------------------------------------------------


def _decide(scratch: str, files: int) -> None:
    """Writes what is removed of each file to SCRATCH/removed-NUMBER.json: {place in the file: as in the report}."""
    places: dict[int, str] = {}
    copies: dict[int, tuple[int, str]] = {}  # of groups: text -> (first of the group, why)
    pairs = []
    for path in sorted(to_path(scratch).glob('copies-*')):
        for line in path.read_text(encoding='utf-8').splitlines():
            copy = json.loads(line)
            places[copy['of']], places[copy['text']] = copy['of_where'], copy['where']
            if copy['similarity'] == 1:
                copies[copy['text']] = (copy['of'], copy['why'])
            else:
                pairs.append((copy['of'], copy['text'], copy['similarity']))
    found = greedy_repeats(pairs)
    removed: dict[int, tuple[int, str, float]] = {text: (of, 'near', alike) for text, (of, alike) in found.items()}
    for text, (of, why) in copies.items():
        if of in copies:  # an exact copy of a text that is itself a copy by its n-grams
            of, why = copies[of]
        removed[text] = (found[of][0], 'near', found[of][1]) if of in found else (of, why, 1.0)
    by_file: list[dict[str, Any]] = [{} for _ in range(files)]
    for text, (of, why, alike) in removed.items():
        entry = {'text': places[text], 'why': why, 'of': places[of], 'similarity': round(alike, 3)}
        by_file[text // _FILE][str(text % _FILE)] = entry
    for number, entries in enumerate(by_file):
        write_json(f'{scratch}/removed-{number:05}.json', entries)


# -- The second pipeline: the texts that stay -------------------------------------------------------------------------


def _write_texts(paths: Sequence[str], field: str, unit: str, stem: str, scratch: str, options: Sequence[str]) -> None:
    import apache_beam as beam

    write = functools.partial(write_file, field=field, unit=unit, stem=stem, scratch=scratch, files=len(paths))
    with _pipeline(options) as pipeline:
        files = pipeline | 'files' >> beam.Create(list(enumerate(paths))) | 'spread' >> beam.Reshuffle()
        _ = files | 'write' >> beam.Map(write)


def write_file(file: tuple[int, str], field: str, unit: str, stem: str, scratch: str, files: int) -> None:
    """Writes the texts of a file that stay, and its part of the report."""
    number, path = file
    removed = json.loads(to_path(f'{scratch}/removed-{number:05}.json').read_text(encoding='utf-8'))
    part: dict[str, Any] = dict.fromkeys(_COUNTS, 0) | {'removed': []}
    with open_whole(f'{stem}-{number:05}-of-{files:05}.jsonl', 'wb') as out:
        for place, text in enumerate(_read(path, field, unit)):
            part['texts'] += 1
            part['characters'] += len(text.text)
            entry = removed.get(str(place))
            if entry is None:
                part['kept'] += 1
                part['characters_kept'] += len(text.text)
                write_row(out, text, field, text.text)
            else:
                part[entry['why']] += 1
                part['removed'].append({**entry, 'begins': text.text[:80]})
    write_json(f'{scratch}/report-{number:05}.json', part)


def _report(stem: str, scratch: str, files: int, rules: Rules, report_file: str | None) -> dict[str, Any]:
    """Joins the parts of the report."""
    report: dict[str, Any] = dict.fromkeys(_COUNTS, 0)
    report |= {'rules': vars(rules).copy(), 'files': f'{stem}-*-of-{files:05}.jsonl', 'removed': []}
    with contextlib.ExitStack() as stack:
        listed = stack.enter_context(ReportFile(report_file)) if report_file else None
        for number in range(files):
            part = json.loads(to_path(f'{scratch}/report-{number:05}.json').read_text(encoding='utf-8'))
            for name in _COUNTS:
                report[name] += part[name]
            for removed in part['removed']:
                if listed is None or len(report['removed']) < SHOWN:
                    report['removed'].append(removed)
                if listed is not None:
                    listed.add(removed)
        if listed is not None:
            listed.finish(report)
    return report


def _read(path: str, field: str, unit: str) -> Iterator[Text]:
    """The texts of a file, which is copied to this worker first if it is in a bucket."""
    if '://' not in path:
        yield from read_texts([path], field, unit)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, path.rpartition('/')[2])
        with to_path(path).open('rb') as source, open(local, 'wb') as target:
            for piece in iter(_reader(source), b''):
                target.write(piece)
        for text in read_texts([local], field, unit):
            yield text._replace(where=text.where.replace(local, path))


def _reader(source: Any) -> Callable[[], bytes]:
    return lambda: source.read(2**24)
