"""Trains a SentencePiece vocabulary from text files (`t5flan vocabulary`)."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from t5flan.data.records.hub import is_dataset
from t5flan.data.records.rows import is_plain_text, json_source, plain_text, read_rows
from t5flan.data.records.text_files import is_held_out, match_texts
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.errors import UsageError, UserError

MOST_BYTES = 100_000_000
"""Larger texts are sampled down to this: SentencePiece keeps several copies of the text in memory."""
TRAINING_THREADS = 4
"""Fixed rather than the number of cores: SentencePiece's result depends on it."""
CHARACTER_COVERAGE = 0.9995
Languages = Mapping[str, Sequence[str]]
"""Name of a language -> the paths of its files."""


def train_vocabulary(
    inputs: Sequence[str],
    size: int,
    output: str | os.PathLike,
    extra_ids: int = 100,
    mode_tokens: Sequence[str] = ('[NLU]', '[NLG]', '[S2S]'),
    fields: Sequence[str] = ('text', 'inputs', 'targets'),
    *,
    alpha: float = 1.0,
    character_coverage: float = CHARACTER_COVERAGE,
    split_digits: bool = True,
) -> SentencePieceVocabulary:
    """Trains a vocabulary and writes F.model and F.json.

    Args:
        inputs: paths or globs of .txt and .jsonl files; each is a language, see `find_languages`.
        size: number of ids, sentinels and mode tokens included.
        fields: the fields of .jsonl rows to read; a row needs at least one of them.
        alpha: a language with n bytes gets a share of n**alpha, as in mT5 (arXiv:2010.11934, section 3.2, alpha 0.3):
            1 takes the text as it is, 0 as much of each language. Text of small languages is repeated.
        character_coverage: share of the text's characters that get a piece; the others become bytes. mT5's is 0.99999.
        split_digits: whether each digit is a piece of its own.

    Raises:
        UserError: a file is missing, empty or malformed, or the size does not suit the text.
    """
    check_ranges(alpha, character_coverage)
    if Path(output).suffix != '.model':
        raise UsageError(f'--output={output} must end in .model; its description is written beside it as .json.')
    if size <= extra_ids + len(mode_tokens):
        reserved = f'{extra_ids} sentinels and {len(mode_tokens)} mode tokens'
        raise UsageError(f'--size={size} leaves no pieces beside {reserved}. Set a larger --size.')
    languages = find_languages(inputs)
    factors = sampling_factors(languages, alpha)
    texts = (line for name, paths in languages.items() for line in lines_of(paths, fields, factors[name]))
    vocabulary = train_sentencepiece(
        texts, size, extra_ids, mode_tokens, character_coverage=character_coverage, split_digits=split_digits
    )
    vocabulary.save_model(output)
    return vocabulary


def check_ranges(alpha: float, character_coverage: float) -> None:
    """Raises a UserError for a number that cannot be meant."""
    if not 0 <= alpha <= 1:
        raise UserError(f'--alpha={alpha}, expected a number from 0 to 1. Set --alpha; mT5 takes 0.3.')
    if not 0.98 <= character_coverage <= 1:  # SentencePiece takes no others
        problem = f'--character_coverage={character_coverage}, expected a number from 0.98 to 1'
        raise UserError(f'{problem}. Set --character_coverage; mT5 takes 0.99999.')


def find_languages(inputs: Sequence[str]) -> dict[str, list[str]]:
    """Name of the language -> its files: of 'fr=text/fr/*.txt' the name is 'fr', of 'text/*.txt' the pattern itself.

    Raises:
        UserError: a pattern matches no file, or a file is empty.
    """
    found: dict[str, list[str]] = {}
    for given in inputs:
        named = re.fullmatch(r'([\w-]{1,20})=(.+)', given)
        name, pattern = (named[1], named[2]) if named and not os.path.exists(given) else (given, given)
        found.setdefault(name, []).extend(match_texts(pattern, '--input'))
    return found


def sizes_of(languages: Languages) -> dict[str, int]:
    """Bytes of the files of each language."""
    return {name: sum(map(_size, paths)) for name, paths in languages.items()}


def sampling_factors(languages: Languages, alpha: float) -> dict[str, float]:
    """How often the text of each language is read: below 1, that share of its lines.

    All languages together stay as large as they are, and below MOST_BYTES.
    """
    sizes = sizes_of(languages)
    total = sum(sizes.values())
    if alpha == 1:
        return dict.fromkeys(languages, min(1.0, MOST_BYTES / max(1, total)))
    weights = {name: max(1, size) ** alpha for name, size in sizes.items()}
    scale = min(total, MOST_BYTES) / sum(weights.values())
    return {name: scale * weights[name] / max(1, sizes[name]) for name in languages}


def lines_of(paths: Sequence[str], fields: Sequence[str], factor: float) -> Iterator[str]:
    """The text of every line or row, `factor` times."""
    for _ in range(int(factor)):
        yield from _lines(paths, fields, 1.0)
    if factor % 1:
        yield from _lines(paths, fields, factor % 1)


def _size(path: str) -> int:
    """Bytes of a file, or of the JSON of a data set."""
    return os.path.getsize(json_source(path)[0] if is_dataset(path) else path)


def _lines(paths: Sequence[str], fields: Sequence[str], share: float) -> Iterator[str]:
    """The text of every line or row, or of a share of them, chosen by their hashes (the same on every machine)."""
    for path in paths:
        if is_plain_text(path):
            yield from _text_lines(path, share)
            continue
        for row in read_rows(path):
            if share < 1 and not is_held_out(row.identity, share):
                continue
            texts = [row.value[field] for field in fields if isinstance(row.value.get(field), str)]
            if not texts:
                known = ', '.join(row.value)
                problem = f'{row.where}: no text in {", ".join(fields)}'
                raise UserError(f'{problem}; the fields are {known}. Set --fields.')
            yield from texts


def _text_lines(path: str, share: float) -> Iterator[str]:
    with open(plain_text(path), 'rb') as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (share < 1 and not is_held_out(line, share)):
                continue
            try:
                text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
            except UnicodeDecodeError:
                raise UserError(f'{path} line {number}: not UTF-8. Save the file as UTF-8.') from None
            yield text.replace('\r\n', '\n')


def train_sentencepiece(
    texts: Iterable[str],
    size: int,
    extra_ids: int = 100,
    mode_tokens: Sequence[str] = ('[NLU]', '[NLG]', '[S2S]'),
    *,
    character_coverage: float = CHARACTER_COVERAGE,
    split_digits: bool = True,
) -> SentencePieceVocabulary:
    """Trains a SentencePiece unigram vocabulary (arXiv:1808.06226) that encodes any text without loss.

    Newlines, tabs and runs of spaces are kept, digits are single pieces by default, and unseen characters become bytes.
    The same texts give the same vocabulary on every machine. (One exception: U+2581, SentencePiece's own sign for a
    space.)

    Args:
        texts: training text; a few megabytes are enough for a few thousand pieces.
        size: number of ids: pieces, `extra_ids` sentinels and the mode tokens.
        character_coverage: as in `train_vocabulary`; `split_digits` too.

    Raises:
        UserError: there is no text, it cannot fill `size`, or `size` is too small for its characters.
    """
    reserved = extra_ids + len(mode_tokens)
    lines = [line for text in texts for line in text.split('\n') if line.strip()]
    if not lines:
        raise UserError("the vocabulary's text is empty. Give --input files that hold text.")
    pieces = max(size - reserved, 4)  # with fewer, SentencePiece does not say how many it needs
    try:
        model = _train(lines, pieces, character_coverage=character_coverage, split_digits=split_digits)
    except RuntimeError as error:
        raise UserError(_size_error(str(error), size, reserved)) from None
    return SentencePieceVocabulary('a trained vocabulary', extra_ids, mode_tokens, model=model)


def _train(lines: Sequence[str], pieces: int, *, character_coverage: float, split_digits: bool) -> bytes:
    """A SentencePiece model; a RuntimeError if the number of pieces does not suit the text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=pieces,
        model_type='unigram',
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=['\n'],
        byte_fallback=True,
        split_digits=split_digits,
        allow_whitespace_only_pieces=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        character_coverage=character_coverage,
        max_sentence_length=2**30,
        num_threads=TRAINING_THREADS,
        minloglevel=2,
    )
    return model.getvalue()


def _size_error(message: str, size: int, reserved: int) -> str:
    """SentencePiece's error about the size, in ids instead of pieces."""
    start = f'a vocabulary of {size} ids ({reserved} of them sentinels and mode tokens)'
    if found := re.search(r'value <= (\d+)', message):
        most = int(found[1]) + reserved
        return f'{start} is more than this text can fill: {most} at most. Set a smaller --size, or give more text.'
    if found := re.search(r'-?\d+ vs (\d+)', message):
        least = int(found[1]) + reserved
        return f'{start} is too small for this text and the 256 bytes: {least} at least. Set a larger --size.'
    return f'{start} cannot be trained: {message.splitlines()[-1]}. Set --size between 500 and 250000.'
