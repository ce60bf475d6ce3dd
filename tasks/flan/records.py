"""What some of Flan's data sets need before their fields can be named: small functions that a row of the table calls by name.

A function takes a record (and the row's further words) and gives records; the table's fields are filled from those.
"""

import itertools
import re
import string
from collections.abc import Callable, Iterator
from typing import Any

from t5flan.data.randomness import stable_hash

Record = dict[str, Any]
UNANSWERABLE = 'unanswerable'
LANGUAGES = {
    'cs': 'Czech', 'de': 'German', 'en': 'English', 'es': 'Spanish', 'fi': 'Finnish', 'fr': 'French', 'ro': 'Romanian',
    'ru': 'Russian', 'tr': 'Turkish',
}  # fmt: skip
_MARK = re.compile(r'\[[^\[\]]*\]\s*')
_TAG = re.compile(r'<[^<>]{1,40}>')
_CHOICE = re.compile(r'\(([A-Za-z])\)\s*')


def joined(record: Record, field: str, separator: str) -> Iterator[Record]:
    """A list of texts as one text."""
    yield {**record, field: separator.join(record[field])}


def without_tags(record: Record, field: str) -> Iterator[Record]:
    """A text without HTML's tags."""
    yield {**record, field: ' '.join(_TAG.sub(' ', record[field]).split())}


def replaced(record: Record, field: str, old: str, new: str) -> Iterator[Record]:
    """A text with something else in place of a mark ('|||||' between Multi-News' articles)."""
    yield {**record, field: record[field].replace(old, new)}


def facts(record: Record, field: str) -> Iterator[Record]:
    """Triples (DART, WebNLG) as one text: 'Aarhus_Airport | city | Aarhus' is 'Aarhus Airport, city, Aarhus'."""
    texts = (_MARK.sub('', text).replace('_', ' ').replace(' | ', ', ') for text in record[field])
    yield {**record, field: '; '.join(' '.join(text.split()) for text in texts)}


def without_marks(record: Record) -> Iterator[Record]:
    """HellaSwag: without WikiHow's '[header]', '[title]' and '[step]'."""
    yield {
        **record,
        'context': _MARK.sub('', record['context']),
        'endings': [_MARK.sub('', text) for text in record['endings']],
    }


def lettered(record: Record) -> Iterator[Record]:
    """'choices' with 'label' and 'text', and 'answerKey' (ARC, QASC): 'texts', and 'number' of the answer among them."""
    labels, key = list(record['choices']['label']), record['answerKey']
    yield {**record, 'texts': list(record['choices']['text']), 'number': labels.index(key) if key in labels else -1}


def copa(record: Record) -> Iterator[Record]:
    """COPA asks for a cause or an effect."""
    asked = 'What was the cause of this?' if record['question'] == 'cause' else 'What happened as a result?'
    yield {**record, 'asked': asked}


def score(record: Record) -> Iterator[Record]:
    """STS-B's similarity in steps of 0.2, as T5 writes it (arXiv:1910.10683, section 2.4): 2.57 is '2.6'."""
    yield {**record, 'score': f'{round(float(record["label"]) * 5) / 5:.1f}'}


def answerable(record: Record) -> Iterator[Record]:
    """'found': the first answer of SQuAD 2.0 or QuAC, 'unanswerable' where the text has none."""
    texts = [text for text in record['answers']['text'] if text != 'CANNOTANSWER']
    yield {**record, 'found': texts[0] if texts else UNANSWERABLE}


def record_names(record: Record) -> Iterator[Record]:
    """ReCoRD: the passage without its marks, each name once."""
    passage = record['passage'].replace('\n@highlight\n', '\n')
    yield {**record, 'passage': passage, 'names': list(dict.fromkeys(record['entities']))}


def all_turns(record: Record) -> Iterator[Record]:
    """CoQA: a story's questions, numbered, and their answers."""
    answers = list(record['answers']['input_text'])
    pairs = list(zip(record['questions'], answers, strict=False))
    if pairs:
        yield {
            **record,
            'asked': 'Answer these questions in turn: '
            + ' '.join(f'({i}) {asked}' for i, (asked, _) in enumerate(pairs, 1)),
            'replies': ' '.join(f'({i}) {reply}' for i, (_, reply) in enumerate(pairs, 1)),
        }


def each_question(record: Record) -> Iterator[Record]:
    """RACE: a record for each question about an article, 'number' among its 'texts'."""
    for asked, texts, letter in zip(record['questions'], record['options'], record['answers'], strict=False):
        yield {**record, 'asked': asked, 'texts': list(texts), 'number': string.ascii_uppercase.find(letter[:1] or '?')}


def last_word(record: Record) -> Iterator[Record]:
    """LAMBADA: a passage and its last word."""
    before, _, word = record['passage'].strip().rpartition(' ')
    if before:
        yield {**record, 'before': before, 'word': word}


def parted(record: Record) -> Iterator[Record]:
    """UnifiedQA's 'question \\\\n (a) one (b) two \\\\n passage': 'asked', 'texts' and 'passage', where there are such."""
    asked, *others = (part.strip() for part in record['input'].split('\\n'))
    made = {**record, 'asked': asked, 'texts': [], 'passage': ''}
    for part in others:
        if not made['texts'] and _CHOICE.match(part):
            made['texts'] = [text.strip() for text in _CHOICE.split(part)[2::2]]
        elif part:
            made['passage'] = part
    if others:
        yield made


def table_rows(record: Record) -> Iterator[Record]:
    """WikiBio: an infobox as 'name: value' pairs."""
    table = record['input_text']['table']
    pairs = zip(table['column_header'], table['content'], strict=False)
    yield {**record, 'rows': '; '.join(f'{name.replace("_", " ")}: {value}' for name, value in pairs)}


def opinions(record: Record, field: str, subject: str) -> Iterator[Record]:
    """opinion_abstracts: 'listed', the first ten opinions, one a line, and the 'subject' that they are about."""
    values = record[field]['value'][:10]
    listed = '\n'.join(f'- {" ".join(value.split())}' for value in values)
    yield {**record, 'listed': listed, 'subject': record[subject].replace('_', ' ')}


def either_way(record: Record, one: str, other: str) -> Iterator[Record]:
    """A pair of sentences, from one language to the other or back; a hash of the pair decides, so that both are as frequent."""
    if stable_hash(record[one] + record[other]) % 2:
        one, other = other, one
    yield {
        'text': record[one],
        'translated': record[other],
        'source_language': LANGUAGES[one],
        'target_language': LANGUAGES[other],
    }


def no_capitals(record: Record) -> Iterator[Record]:
    """'spoiled': English in lower case."""
    yield from _spoiled(record, record['en'].lower())


def no_punctuation(record: Record) -> Iterator[Record]:
    """'spoiled': English without punctuation."""
    marks = str.maketrans('', '', string.punctuation.replace("'", '').replace('-', ''))
    yield from _spoiled(record, ' '.join(record['en'].translate(marks).split()))


def no_spaces(record: Record) -> Iterator[Record]:
    """'spoiled': English without the spaces between words."""
    yield from _spoiled(record, record['en'].replace(' ', ''))


def _spoiled(record: Record, text: str) -> Iterator[Record]:
    if text and text != record['en']:
        yield {**record, 'spoiled': text}


def some_turn(record: Record) -> Iterator[Record]:
    """A conversation up to one of its turns, chosen by a hash of it: 'before' and 'turn' (WikiDialog)."""
    turns = list(record['utterances'])
    if len(turns) < 2:
        return
    end = 1 + stable_hash('\n'.join(turns)) % (len(turns) - 1)
    speakers = itertools.cycle('AB')
    before = '\n'.join(f'{speaker}: {turn}' for speaker, turn in zip(speakers, turns[:end], strict=False))
    yield {**record, 'before': before, 'turn': turns[end]}


RECORDS: dict[str, Callable[..., Iterator[Record]]] = {
    function.__name__: function
    for function in (
        joined, without_tags, replaced, facts, without_marks, lettered, copa, score, answerable, record_names, all_turns,
        each_question, last_word, parted, table_rows, opinions, either_way, no_capitals, no_punctuation, no_spaces, some_turn,
    )
}  # fmt: skip
"""Name in the table -> function."""
