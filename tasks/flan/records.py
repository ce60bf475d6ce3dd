"""Functions that prepare the records of some of Flan's data sets; a row of the table names one as "make".

A function takes a record (and the further words of "make") and yields records, from which the row's fields are filled.
"""

import itertools
import re
import string
from collections.abc import Callable, Iterator, Sequence
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
    """Joins a list of texts, without empty ones."""
    yield {**record, field: separator.join(text for text in record[field] if text)}


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


def table_rows(record: Record, without: str = '') -> Iterator[Record]:
    """WikiBio: an infobox as 'name: value' pairs, without those whose name contains `without`."""
    table = record['input_text']['table']
    pairs = zip(table['column_header'], table['content'], strict=False)
    kept = [(name.replace('_', ' '), value) for name, value in pairs if not without or without not in name]
    yield {**record, 'rows': '; '.join(f'{name}: {value}' for name, value in kept)}


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


def some_turn(record: Record, key: str = '') -> Iterator[Record]:
    """WikiDialog, Taskmaster: the conversation 'before' one of its turns, chosen by a hash, and that 'turn'.

    Args:
        key: the field of an utterance with its text, if it is no text itself.
    """
    turns = [turn[key] if key else turn for turn in record['utterances']]
    if len(turns) < 2:
        return
    end = 1 + stable_hash('\n'.join(turns)) % (len(turns) - 1)
    yield {**record, 'before': _spoken(turns[:end]), 'turn': turns[end]}


def _spoken(turns: Sequence[str]) -> str:
    return '\n'.join(f'{speaker}: {turn}' for speaker, turn in zip(itertools.cycle('AB'), turns, strict=False))


def next_turn(record: Record, context: str, question: str) -> Iterator[Record]:
    """QReCC: the conversation 'before' the answer, which is the context and the question."""
    yield {**record, 'before': _spoken([*record[context], record[question]])}


def parted_at(record: Record, field: str, end: str) -> Iterator[Record]:
    """DREAM, WIQA: the 'first' or 'last' (`end`) of a list of texts, and the 'rest', without empty texts."""
    texts = [text.strip() for text in record[field] if text.strip()]
    if len(texts) > 1:
        one, rest = (texts[0], texts[1:]) if end == 'first' else (texts[-1], texts[:-1])
        yield {**record, end: one, 'rest': '\n'.join(rest), 'spoken': _spoken(rest)}


def only(record: Record, field: str, value: str) -> Iterator[Record]:
    """WikiQA: only the records with this value of a field."""
    if str(record[field]) == value:
        yield record


def first_answer(record: Record) -> Iterator[Record]:
    """DuoRC: 'found', the first answer, or 'unanswerable'."""
    texts = [] if record['no_answer'] else list(record['answers'])
    yield {**record, 'found': texts[0] if texts else UNANSWERABLE}


def sorted_options(record: Record, *fields: str) -> Iterator[Record]:
    """SciQ: 'texts', the options in fields of their own, sorted, because the first field is always the answer."""
    yield {**record, 'texts': sorted(dict.fromkeys(record[field] for field in fields))}


def relation(record: Record) -> Iterator[Record]:
    """WikiHop: the 'passage', and the 'relation' and 'subject' of the query 'place_of_birth ada lovelace'."""
    name, _, subject = record['query'].partition(' ')
    passage = '\n'.join(f'- {text}' for text in record['supports'])
    yield {**record, 'passage': passage, 'relation': name.replace('_', ' '), 'subject': subject}


def proposed(record: Record, function: str) -> Iterator[Record]:
    """'proposed', one of the 'texts' that another function makes, and whether it 'is_right'; a hash selects it.

    Half of the proposals are right. The right one is text 'number', or the 'output'.
    """
    for made in RECORDS[function](record):
        texts = list(made['texts'])
        number = made['number'] if 'number' in made else texts.index(made['output']) if made['output'] in texts else -1
        if not 0 <= number < len(texts) or len(texts) < 2:
            continue
        drawn = stable_hash('\n'.join(texts) + str(made.get('question', '')) + made.get('asked', ''))
        wrong = (number + 1 + drawn // 2 % (len(texts) - 1)) % len(texts)
        is_right = drawn % 2 == 0
        yield {**made, 'proposed': texts[number if is_right else wrong], 'is_right': 'yes' if is_right else 'no'}


def whole_question(record: Record) -> Iterator[Record]:
    """RACE: 'whole', a question with its lettered options and the letter of the answer."""
    for made in each_question(record):
        listed = ''.join(f'\n({letter}) {text}' for letter, text in zip(string.ascii_uppercase, made['texts']))
        if 0 <= made['number'] < len(made['texts']):
            yield {**made, 'whole': f'{made["asked"]}{listed}\nAnswer: ({string.ascii_uppercase[made["number"]]})'}


def solved_in(record: Record, *languages: str) -> Iterator[Record]:
    """CodeContests: 'solution', the shortest right solution in the first of the languages that has one."""
    solutions = list(zip(record['solutions']['language'], record['solutions']['solution'], strict=True))
    for language in languages:
        if texts := [text for name, text in solutions if name == language]:
            yield {**record, 'solution': min(texts, key=len)}
            return


RECORDS: dict[str, Callable[..., Iterator[Record]]] = {
    function.__name__: function
    for function in (
        joined, without_tags, replaced, facts, without_marks, lettered, copa, score, answerable, record_names,
        all_turns, each_question, last_word, parted, table_rows, opinions, either_way, no_capitals, no_punctuation,
        no_spaces, some_turn, next_turn, parted_at, only, first_answer, sorted_options, relation, proposed,
        whole_question, solved_in,
    )
}  # fmt: skip
"""Name in the table -> function."""
