"""`t5flan memorization`: how much of its training text a model reproduces (PaLM 2, arXiv:2305.10403, section 4.6).

The first 50 tokens of a text are the prompt; a model that memorized the text continues with the next 50 under greedy
decoding. The rows may be training text, unseen text (for comparison), or canaries: random words planted in the training
text a known number of times (TextFiles.held_out holds some of them out, with all their copies).

    t5flan memorization --make_canaries=canaries.jsonl --repeats=1,10,100
    ... train with canaries.jsonl among the text (TextFiles.train) ...
    t5flan memorization --checkpoint=DIR --input=canaries.jsonl --group=repeats
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.randomness import stable_hash
from t5flan.data.records.fields import find_field, require_field
from t5flan.data.records.rows import is_plain_text, plain_text, read_rows
from t5flan.data.records.text_files import match_texts, plain_texts
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.evaluation.inference import load_with_control
from t5flan.files import write_whole

_NO_LIMIT = 2**62


@dataclasses.dataclass(frozen=True)
class Probe:
    """The start of a text.

    Attributes:
        group: the value of the field that results are grouped by.
        prefix: the tokens of the prompt.
        rest: the tokens that follow.
    """

    group: str
    prefix: tuple[int, ...]
    rest: tuple[int, ...]


def make_canaries(path: str, repeats: Sequence[int], count: int = 20, words: int = 120, seed: int = 0) -> int:
    """Writes texts of random letters in random order: for each number in `repeats`, `count` texts that many times.

    The rows are {'text', 'repeats', 'canary'}.

    Returns:
        The number of rows.

    Raises:
        UserError: a number is below 1, or `path` does not end in .jsonl.
    """
    if not path.endswith('.jsonl'):
        raise UserError(f'--make_canaries={path}, expected a .jsonl file. Set --make_canaries.')
    if not repeats or min(repeats) < 1:
        raise UserError(f'--repeats={",".join(map(str, repeats))}, expected numbers of 1 or more. Set --repeats.')
    rng = np.random.Generator(np.random.Philox(key=seed))
    letters = np.array(list('abcdefghijklmnopqrstuvwxyz'))
    rows = []
    for times in repeats:
        for number in range(count):
            text = ' '.join(''.join(rng.choice(letters, rng.integers(3, 8))) for _ in range(words))
            rows += [{'text': text, 'repeats': times, 'canary': f'{times}/{number}'}] * times
    order = rng.permutation(len(rows))
    write_whole(path, ''.join(json.dumps(rows[i]) + '\n' for i in order))
    return len(rows)


def memorization(
    checkpoint: str,
    patterns: Sequence[str],
    *,
    field: str = 'text',
    unit: str = 'document',
    group: str | None = None,
    prefix: int = 50,
    length: int = 50,
    limit: int = 500,
    control: Sequence[str] = (),
    step: int | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Measures the share of texts that a checkpoint continues word for word.

    Args:
        patterns: .txt or .jsonl files. Each text counts once, and only if it has prefix + length tokens.
        field: the field of .jsonl rows that holds the text.
        unit: what counts as one text in a .txt file: 'document', 'paragraph' or 'line'.
        group: a field of .jsonl rows; results are also reported for each of its values.
        prefix: tokens of the prompt.
        length: tokens to continue with.
        limit: at most N texts, chosen by a hash.
        control: mode or control tokens before the prefix ('[S2S]' for a model trained with UL2's).

    Returns:
        {'all': {'texts', 'exact', 'tokens'}, GROUP: ...}: the number of texts, the share continued exactly for `length`
        tokens, and the mean share of tokens before the first wrong one.

    Raises:
        UserError: a file, field or token is wrong, or no text is long enough.
    """
    if prefix < 1 or length < 1 or limit < 1:
        raise UserError(f'--prefix={prefix} --length={length} --limit={limit}, expected 1 or more. Set them.')
    paths = [path for pattern in patterns for path in match_texts(pattern, '--input')]
    model = load_with_control(checkpoint, step, control)
    before = [model.vocabulary.mode_token_id(token) for token in control]
    probes = find_probes(_texts(paths, field, unit, group), model.vocabulary, prefix, length)[:limit]
    if not probes:
        shown = ', '.join(paths[:3])
        raise UserError(f'no text of {shown} has {prefix} + {length} tokens. Set --prefix, --length or --unit.')
    ends = [model.vocabulary.eos_id] * model.inputs_end
    inputs = [[*before, *probe.prefix, *ends] for probe in probes]
    generations = model.generate_ids(inputs, length, batch_size=batch_size)
    return scores(probes, [samples[0].tokens.tolist() for samples in generations])


def find_probes(texts: Iterable[tuple[str, str]], vocabulary: Vocabulary, prefix: int, length: int) -> list[Probe]:
    """The distinct texts with at least prefix + length tokens, in the order of a hash."""
    found: dict[int, Probe] = {}
    for text, group in texts:
        key = stable_hash(text)
        if key not in found and len(ids := vocabulary.encode(text)) >= prefix + length:
            found[key] = Probe(group, tuple(ids[:prefix]), tuple(ids[prefix : prefix + length]))
    return [found[key] for key in sorted(found)]


def _texts(paths: Sequence[str], field: str, unit: str, group: str | None) -> Iterator[tuple[str, str]]:
    """(text, group) of every text."""
    for path in paths:
        if is_plain_text(path):
            yield from ((text, '') for _, _, text in plain_texts(plain_text(path), unit, _NO_LIMIT, named=path))
            continue
        for row in read_rows(path):
            text = require_field(row.value, field, row.where, '--field')
            yield text, '' if group is None else str(find_field(row.value, group, row.where, '--group'))


def scores(probes: Sequence[Probe], continuations: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The result of `memorization` from the model's continuations."""
    shares: dict[str, list[float]] = {'all': []}
    for probe, continuation in zip(probes, continuations, strict=True):
        pairs = enumerate(zip(probe.rest, [*continuation, *[-1] * len(probe.rest)]))
        share = next((i for i, (a, b) in pairs if a != b), len(probe.rest)) / len(probe.rest)
        for name in {'all', probe.group or 'all'}:
            shares.setdefault(name, []).append(share)
    by_number = lambda name: (name != 'all', float(name) if name.replace('.', '', 1).isdigit() else 0.0, name)
    return {
        name: {
            'texts': len(shares[name]),
            'exact': float(np.mean([share == 1 for share in shares[name]])),
            'tokens': float(np.mean(shares[name])),
        }
        for name in sorted(shares, key=by_number)
    }


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Formats the result as one line per group."""
    return [
        f'{name}: {one["exact"]:.1%} of {one["texts"]:,} texts continued word for word; on average the first '
        f'{one["tokens"]:.1%} of the tokens match'
        for name, one in found.items()
    ]
