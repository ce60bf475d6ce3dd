"""`t5flan memorization`: how much of its training text a model writes down again (PaLM 2, arXiv:2305.10403, section 4.6).

A text's first 50 tokens are the prompt, the next 50 what a model that knows it by heart goes on with; greedy decoding. The rows may
be training text, text it never saw (to compare with), or canaries: random words planted in the training text a known number of times (some are held out with TextFiles.held_out, copies and all).

    t5flan memorization --make_canaries=canaries.jsonl --repeats=1,10,100
    … train with canaries.jsonl among the text (TextFiles.train) …
    t5flan memorization --checkpoint=DIR --input=canaries.jsonl --group=repeats
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.randomness import stable_hash
from t5flan.data.records.text_files import SUFFIXES, json_lines, json_object, match_files, plain_texts, require_field
from t5flan.errors import UserError
from t5flan.files import write_whole

_WHOLE = 2**62


@dataclasses.dataclass(frozen=True)
class Probe:
    """A text cut in two: tokens that are shown, and those that would follow."""

    where: str
    group: str
    prefix: tuple[int, ...]
    rest: tuple[int, ...]


def make_canaries(path: str, repeats: Sequence[int], count: int = 20, words: int = 120, seed: int = 0) -> int:
    """Writes `count` texts of random letters for each number of repeats, each as many times, in a mixed order.

    Returns:
        Rows written: {'text', 'repeats', 'canary'}.

    Raises:
        UserError: a number is below 1, or the file is no .jsonl.
    """
    if not path.endswith('.jsonl'):
        raise UserError(f'--make_canaries={path} must be a .jsonl. Set --make_canaries.')
    if not repeats or min(repeats) < 1:
        raise UserError(f'--repeats={",".join(map(str, repeats))}: expected numbers of 1 or more. Set --repeats.')
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
    """What share of texts a checkpoint continues word for word.

    Args:
        patterns: .txt or .jsonl files; a text is taken once, and only if it has prefix + length tokens.
        group: a field of .jsonl rows; results are told for each of its values too.
        limit: at most so many texts, chosen by a hash.
        control: mode or control tokens in front of the prefix ('[S2S]' for a model trained with UL2's).

    Returns:
        {'all': {'texts', 'exact', 'tokens'}, GROUP: …}: texts probed, the share continued exactly for all of `length` tokens, the
        mean share of tokens right before the first wrong one.

    Raises:
        UserError: a file, field or token is wrong, or no text is long enough.
    """
    if prefix < 1 or length < 1 or limit < 1:
        raise UserError(f'--prefix={prefix} --length={length} --limit={limit}: expected 1 or more. Set them.')
    from t5flan.evaluation.inference import check_control
    from t5flan.language_model import load

    paths = [path for pattern in patterns for path in match_files(pattern, SUFFIXES, '--input')]
    model = load(checkpoint, step)
    check_control(control, model)
    before = [model.vocabulary.mode_token_id(token) for token in control]
    probes = find_probes(paths, model.vocabulary, field, unit, group, prefix, length, limit)
    ends = [model.vocabulary.eos_id] * model.inputs_end
    made = model.generate_ids([[*before, *one.prefix, *ends] for one in probes], length, batch_size=batch_size)
    return scores(probes, [samples[0].tokens.tolist() for samples in made])


def find_probes(
    paths: Sequence[str],
    vocabulary: Any,
    field: str,
    unit: str,
    group: str | None,
    prefix: int,
    length: int,
    limit: int,
) -> list[Probe]:
    """The texts that are long enough, each once, at most `limit` of them in the order of a hash of the text.

    Raises:
        UserError: there is none, or a row lacks a field.
    """
    found: dict[int, Probe] = {}
    for where, text, value in _texts(paths, field, unit, group):
        key = stable_hash(text)
        if key in found:
            continue
        ids = vocabulary.encode(text)
        if len(ids) >= prefix + length:
            found[key] = Probe(where, value, tuple(ids[:prefix]), tuple(ids[prefix : prefix + length]))
    if not found:
        raise UserError(
            f'no text of {", ".join(paths[:3])} has {prefix} + {length} tokens. Set --prefix, --length or --unit.'
        )
    return [found[key] for key in sorted(found)[:limit]]


def _texts(paths: Sequence[str], field: str, unit: str, group: str | None) -> Iterator[tuple[str, str, str]]:
    """(place, text, value of the group) of every text."""
    for path in paths:
        if path.endswith('.jsonl'):
            for number, _, line in json_lines(path):
                where = f'{path} line {number}'
                row = json_object(line, where)
                if group is not None and group not in row:
                    raise UserError(f"{where}: no field '{group}'; the fields are {', '.join(row)}. Set --group.")
                yield where, require_field(row, field, where, '--field'), str(row[group]) if group else ''
        else:
            for number, (_, _, text) in enumerate(plain_texts(path, unit, _WHOLE), 1):
                yield f'{path} {unit} {number}', text, ''


def scores(probes: Sequence[Probe], continuations: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The result of `memorization` from what the model wrote."""
    right: dict[str, list[float]] = {'all': []}
    for probe, written in zip(probes, continuations, strict=True):
        pairs = enumerate(zip(probe.rest, [*written, *[-1] * len(probe.rest)]))
        share = next((i for i, (a, b) in pairs if a != b), len(probe.rest)) / len(probe.rest)
        for name in {'all', probe.group or 'all'}:
            right.setdefault(name, []).append(share)
    by_number = lambda name: (name != 'all', float(name) if name.replace('.', '', 1).isdigit() else 0.0, name)
    return {
        name: {
            'texts': len(right[name]),
            'exact': float(np.mean([share == 1 for share in right[name]])),
            'tokens': float(np.mean(right[name])),
        }
        for name in sorted(right, key=by_number)
    }


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines for people."""
    return [
        f'{name}: {one["exact"]:.1%} of {one["texts"]:,} texts continued word for word, {one["tokens"]:.1%} of the tokens '
        'right before the first wrong one'
        for name, one in found.items()
    ]
