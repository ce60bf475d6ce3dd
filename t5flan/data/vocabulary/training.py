"""Trains a SentencePiece vocabulary from text files (`t5flan vocabulary`)."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
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


def train_vocabulary(
    inputs: Sequence[str],
    size: int,
    output: str | os.PathLike,
    extra_ids: int = 100,
    mode_tokens: Sequence[str] = ('[NLU]', '[NLG]', '[S2S]'),
    fields: Sequence[str] = ('text', 'inputs', 'targets'),
) -> SentencePieceVocabulary:
    """Trains a vocabulary and writes F.model and F.json.

    Args:
        inputs: paths or globs of .txt and .jsonl files.
        size: number of ids, sentinels and mode tokens included.
        fields: the fields of .jsonl rows to read; a row needs at least one of them.

    Raises:
        UserError: a file is missing, empty or malformed, or the size does not suit the text.
    """
    if Path(output).suffix != '.model':
        raise UsageError(f'--output={output} must end in .model; its description is written beside it as .json.')
    if size <= extra_ids + len(mode_tokens):
        reserved = f'{extra_ids} sentinels and {len(mode_tokens)} mode tokens'
        raise UsageError(f'--size={size} leaves no pieces beside {reserved}. Set a larger --size.')
    paths = [path for pattern in inputs for path in match_texts(pattern, '--input')]
    share = MOST_BYTES / max(1, sum(map(_size, paths)))
    vocabulary = train_sentencepiece(_lines(paths, fields, share), size, extra_ids, mode_tokens)
    vocabulary.save_model(output)
    return vocabulary


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
    texts: Iterable[str], size: int, extra_ids: int = 100, mode_tokens: Sequence[str] = ('[NLU]', '[NLG]', '[S2S]')
) -> SentencePieceVocabulary:
    """Trains a SentencePiece unigram vocabulary (arXiv:1808.06226) that encodes any text without loss.

    Newlines, tabs and runs of spaces are kept, digits are single pieces, and unseen characters become bytes. The same
    texts give the same vocabulary on every machine. (One exception: U+2581, SentencePiece's own sign for a space.)

    Args:
        texts: training text; a few megabytes are enough for a few thousand pieces.
        size: number of ids: pieces, `extra_ids` sentinels and the mode tokens.

    Raises:
        UserError: there is no text, it cannot fill `size`, or `size` is too small for its characters.
    """
    import sentencepiece

    pieces = size - extra_ids - len(mode_tokens)
    lines = [line for text in texts for line in text.split('\n') if line.strip()]
    if not lines:
        raise UserError("the vocabulary's text is empty. Give --input files that hold text.")
    model = io.BytesIO()
    try:
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
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name='identity',
            remove_extra_whitespaces=False,
            character_coverage=0.9995,
            max_sentence_length=2**30,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_size_error(str(error), size, size - pieces)) from None
    return SentencePieceVocabulary('a trained vocabulary', extra_ids, mode_tokens, model=model.getvalue())


def _size_error(message: str, size: int, reserved: int) -> str:
    """SentencePiece's error about the size, in ids instead of pieces."""
    start = f'a vocabulary of {size} ids ({reserved} of them sentinels and mode tokens)'
    if found := re.search(r'value <= (\d+)', message):
        most = int(found[1]) + reserved
        return f'{start} is more than this text can fill: {most} at most. Set a smaller --size, or give more text.'
    if found := re.search(r'(-?\d+) vs (\d+)', message):
        least = int(found[2]) + reserved + 1
        return f'{start} is too small for this text and the 256 bytes: {least} at least. Set a larger --size.'
    return f'{start} cannot be trained: {message.splitlines()[-1]}. Set --size between 500 and 250000.'
