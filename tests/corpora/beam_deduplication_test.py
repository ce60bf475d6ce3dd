"""t5flan/corpora/beam_deduplication.py: the pipelines keep the texts that `deduplicate` keeps."""

import collections
import json
import sys
from pathlib import Path

import pytest

from benchmarks.deduplication import planted
from t5flan.corpora import beam_deduplication
from t5flan.corpora.beam_deduplication import (
    band_keys,
    carry_texts,
    compare,
    copies_in,
    deduplicate_with_beam,
    pairs_in,
    send_to_second,
    write_file,
)
from t5flan.corpora.deduplication import Rules, deduplicate
from t5flan.corpora.near_duplicates import MinHash
from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three files with copies inside and across them, and texts without words."""
    folder = tmp_path_factory.mktemp('corpus')
    texts = list(planted('English', 240, seed=3))
    texts += [one.upper() for one in texts[:20]] + texts[10:30] + ['!!!', '???', '!!!', '', *texts[:5]]
    for number in range(3):
        rows = [{'id': i, 'page': {'body': text}} for i, text in enumerate(texts) if i % 3 == number]
        (folder / f'{number}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


def kept(paths):
    return [json.loads(line) for path in sorted(paths) for line in Path(path).read_text().splitlines()]


def group(pairs):
    groups = collections.defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups.items()


def by_hand(paths, stem, scratch, rules):
    """Does the work of both pipelines, without Beam."""
    texts = [text for file in enumerate(paths) for text in carry_texts(file, 'page.body', 'document', rules)]
    exact = group(texts)
    firsts = [min(texts) for _, texts in exact]
    same = group((stable_hash(text[2]), text) for text in firsts if text[2])
    distinct = [min(texts) for _, texts in same]
    buckets = group(one for text in distinct for one in band_keys(text, MinHash(rules)))
    carried = {number: (where, ngrams) for number, where, ngrams in distinct}
    pairs = group({pair for bucket in buckets for pair in pairs_in(bucket)})
    sent = [
        one
        for number, others in pairs
        for one in send_to_second((number, {'text': [carried[number]], 'pairs': others}))
    ]
    copies = [copy for one in exact for copy in copies_in(one, 'exact')]
    copies += [copy for one in same for copy in copies_in(one, 'near')]
    for number, firsts in group(sent):
        copies += compare((number, {'text': [carried[number]], 'firsts': firsts}), rules.threshold)
    scratch.mkdir()
    (scratch / 'copies-0').write_text(''.join(json.dumps(copy) + '\n' for copy in copies))
    beam_deduplication._decide(str(scratch), len(paths))
    for file in enumerate(paths):
        write_file(file, 'page.body', 'document', stem, str(scratch), len(paths))
    return beam_deduplication._report(stem, str(scratch), len(paths), rules, None)


def test_the_steps_keep_what_one_machine_keeps(folder, tmp_path):
    paths = [str(folder / f'{number}.jsonl') for number in range(3)]
    local = deduplicate(paths, str(tmp_path / 'local.jsonl'), 'page.body')
    report = by_hand(paths, str(tmp_path / 'once'), tmp_path / 'once.parts', Rules())
    assert kept(tmp_path.glob('once-*-of-00003.jsonl')) == kept([tmp_path / 'local.jsonl'])
    assert {name: report[name] for name in ('texts', 'kept', 'characters_kept')} == {
        name: local[name] for name in ('texts', 'kept', 'characters_kept')
    }
    alike = lambda report: {(one['text'], one['similarity']) for one in report['removed']}
    assert alike(report) == alike(local)


def test_large_buckets_stay_linear():
    pairs = set(pairs_in((0, range(1000))))
    assert len(pairs) < 200 * 1000 and {other for _, other in pairs} == set(range(1, 1000))


def test_without_beam_the_error_says_how_to_install_it(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    with pytest.raises(UserError, match=r'Run pip install .t5flan\[beam\]'):
        deduplicate_with_beam([f'{folder}/*.jsonl'], str(tmp_path / 'o.jsonl'))


@pytest.mark.slow
@pytest.mark.parametrize('threshold', [0.8, 1])
def test_beam_keeps_what_one_machine_keeps(folder, tmp_path, threshold):
    pytest.importorskip('apache_beam', reason='apache-beam is not installed: pip install t5flan[beam]')
    rules = Rules(threshold)
    options = dict(field='page.body', rules=rules, report_file=str(tmp_path / 'r.json'))
    report = deduplicate_with_beam([f'{folder}/*.jsonl'], str(tmp_path / 'once.jsonl'), **options)
    local = deduplicate([f'{folder}/*.jsonl'], str(tmp_path / 'local.jsonl'), 'page.body', rules=rules)
    assert kept(tmp_path.glob('once-*-of-00003.jsonl')) == kept([tmp_path / 'local.jsonl'])
    assert report['kept'] == local['kept'] and not (tmp_path / 'once.parts').exists()
    assert len(json.loads((tmp_path / 'r.json').read_text())['removed']) == len(local['removed'])


def test_what_a_killed_run_left_is_removed_and_other_folders_are_not(tmp_path):
    scratch = tmp_path / 'once.parts'
    scratch.mkdir()
    for name in ('copies-00000-of-00001', 'removed-00000.json', '.report-00000.json.0123abcd.tmp'):
        (scratch / name).write_text('')
    beam_deduplication._remove_left(str(scratch))
    assert not scratch.exists()
    scratch.mkdir()
    (scratch / 'mine.txt').write_text('')
    with pytest.raises(UserError, match="once.parts has 'mine.txt', which is not of a run that was killed"):
        beam_deduplication._remove_left(str(scratch))
