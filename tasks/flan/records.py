"""Functions that prepare the records of some of Flan's data sets; a row of the table names one as "make".

A function takes a record (and the further words of "make") and yields records, from which the row's fields are filled.
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
    """Joins a list of texts."""
    yield {**record, field: separator.join(record[field])}


def without_tags(record: Record, field: str) -> Iterator[Record]:
    """Removes HTML tags from a text."""
    yield {**record, field: ' '.join(_TAG.sub(' ', record[field]).split())}


def replaced(record: Record, field: str, old: str, new: str) -> Iterator[Record]:
    """Replaces a mark in a text ('|||||' between the articles of Multi-News)."""
    yield {**record, field: record[field].replace(old, new)}


def facts(record: Record, field: str) -> Iterator[Record]:
    """Triples (DART, WebNLG) as one text: 'Aarhus_Airport | city | Aarhus' -> 'Aarhus Airport, city, Aarhus'."""
    texts = (_MARK.sub('', text).replace('_', ' ').replace(' | ', ', ') for text in record[field])
    yield {**record, field: '; '.join(' '.join(text.split()) for text in texts)}


def without_marks(record: Record) -> Iterator[Record]:
    """HellaSwag: removes WikiHow's '[header]', '[title]' and '[step]'."""
    endings = [_MARK.sub('', text) for text in record['endings']]
    yield {**record, 'context': _MARK.sub('', record['context']), 'endings': endings}


def lettered(record: Record) -> Iterator[Record]:
    """ARC, QASC: 'texts' of the choices, and the 'number' of the answer among them."""
    labels, key = list(record['choices']['label']), record['answerKey']
    yield {**record, 'texts': list(record['choices']['text']), 'number': labels.index(key) if key in labels else -1}


def copa(record: Record) -> Iterator[Record]:
    """COPA: 'asked', the question for a cause or an effect."""
    asked = 'What was the cause of this?' if record['question'] == 'cause' else 'What happened as a result?'
    yield {**record, 'asked': asked}


def score(record: Record) -> Iterator[Record]:
    """STS-B: the similarity in steps of 0.2, as in T5 (arXiv:1910.10683, section 2.4): 2.57 -> '2.6'."""
    yield {**record, 'score': f'{round(float(record["label"]) * 5) / 5:.1f}'}


def answerable(record: Record) -> Iterator[Record]:
    """SQuAD 2.0, QuAC: 'found', the first answer, or 'unanswerable'."""
    texts = [text for text in record['answers']['text'] if text != 'CANNOTANSWER']
    yield {**record, 'found': texts[0] if texts else UNANSWERABLE}


def record_names(record: Record) -> Iterator[Record]:
    """ReCoRD: the passage without marks, and each name once."""
    passage = record['passage'].replace('\n@highlight\n', '\n')
    yield {**record, 'passage': passage, 'names': list(dict.fromkeys(record['entities']))}


def all_turns(record: Record) -> Iterator[Record]:
    """CoQA: the numbered questions of a story, and their answers."""
    answers = list(record['answers']['input_text'])
    pairs = list(enumerate(zip(record['questions'], answers, strict=False), 1))
    asked = ' '.join(f'({i}) {question}' for i, (question, _) in pairs)
    replies = ' '.join(f'({i}) {reply}' for i, (_, reply) in pairs)
    if pairs:
        yield {**record, 'asked': f'Answer these questions in turn: {asked}', 'replies': replies}


def each_question(record: Record) -> Iterator[Record]:
    """RACE: one record per question about an article, with the 'number' of the answer among its 'texts'."""
    for asked, texts, letter in zip(record['questions'], record['options'], record['answers'], strict=False):
        yield {**record, 'asked': asked, 'texts': list(texts), 'number': string.ascii_uppercase.find(letter[:1] or '?')}


def last_word(record: Record) -> Iterator[Record]:
    """LAMBADA: a passage and its last word."""
    before, _, word = record['passage'].strip().rpartition(' ')
    if before:
        yield {**record, 'before': before, 'word': word}


def parted(record: Record) -> Iterator[Record]:
    r"""UnifiedQA's 'question \n (a) one (b) two \n passage': 'asked', 'texts' and 'passage', if it has them."""
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
    """opinion_abstracts: 'listed', the first ten opinions, one per line, and their 'subject'."""
    values = record[field]['value'][:10]
    listed = '\n'.join(f'- {" ".join(value.split())}' for value in values)
    yield {**record, 'listed': listed, 'subject': record[subject].replace('_', ' ')}


def either_way(record: Record, one: str, other: str) -> Iterator[Record]:
    """A translation in a direction that a hash of the pair selects, so that both directions are equally frequent."""
    if stable_hash(record[one] + record[other]) % 2:
        one, other = other, one
    languages = {'source_language': LANGUAGES[one], 'target_language': LANGUAGES[other]}
    yield {'text': record[one], 'translated': record[other], **languages}


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
    """WikiDialog: the conversation 'before' one of its turns, chosen by a hash, and that 'turn'."""
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
        joined, without_tags, replaced, facts, without_marks, lettered, copa, score, answerable, record_names,
        all_turns, each_question, last_word, parted, table_rows, opinions, either_way, no_capitals, no_punctuation,
        no_spaces, some_turn,
    )
}  # fmt: skip
"""Name in the table -> function."""
