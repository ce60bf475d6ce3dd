"""`t5flan memorization`: how much of its training text a model reproduces (PaLM 2, arXiv:2305.10403, section 4.6).

The first 50 tokens of a text are the prompt; a model that memorized the text continues with the next 50 under greedy
decoding. One wrong token ends a copy, so the same tokens are also scored with the true text before each (teacher
forcing): the share of right ones, and their log-likelihood. The rows may be training text, unseen text (for
comparison), or canaries: random words planted in the training text a known number of times (TextFiles.held_out holds
some of them out, with all their copies).

    t5flan memorization --make_canaries=canaries.jsonl --repeats=1,10,100
    ... train with canaries.jsonl among the text (TextFiles.train) ...
    t5flan memorization --checkpoint=DIR --input=canaries.jsonl --references=200

The exposure of a canary (Carlini et al. 2019, arXiv:1802.08232) sees memorization long before a text is continued: how
much more likely the canary is than random texts of the same kind after the same prompt, in bits.
"""

import dataclasses
import json
import math
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
from t5flan.scoring.statistics import bootstrap_interval, share_interval

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


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model does with a probe.

    Attributes:
        continuation: the tokens that it writes after the prefix.
        correct: number of the probe's tokens that are the most likely ones after the true tokens before.
        log_prob: log p(rest | prefix) in nats.
        references: the same of random texts in place of `rest`.
    """

    continuation: Sequence[int]
    correct: int
    log_prob: float
    references: Sequence[float] = ()


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
    rows = []
    for times in repeats:
        for number in range(count):
            rows += [{'text': random_text(rng, words), 'repeats': times, 'canary': f'{times}/{number}'}] * times
    order = rng.permutation(len(rows))
    write_whole(path, ''.join(json.dumps(rows[i]) + '\n' for i in order))
    return len(rows)


def random_text(rng: np.random.Generator, words: int) -> str:
    """Words of 3 to 7 random letters."""
    letters = np.array(list('abcdefghijklmnopqrstuvwxyz'))
    return ' '.join(''.join(rng.choice(letters, rng.integers(3, 8))) for _ in range(words))


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
    references: int = 0,
) -> dict[str, Any]:
    """Measures how much of its texts a checkpoint reproduces, and how likely it finds them.

    Args:
        patterns: .txt or .jsonl files. Each text counts once, and only if it has prefix + length tokens.
        field: the field of .jsonl rows that holds the text.
        unit: what counts as one text in a .txt file: 'document', 'paragraph' or 'line'.
        group: a field of .jsonl rows; results are also reported for each of its values. None groups canaries by
            'repeats' if all rows are canaries, else nothing.
        prefix: tokens of the prompt.
        length: tokens to continue with.
        limit: at most N texts, chosen by a hash.
        control: mode or control tokens before the prefix ('[S2S]' for a model trained with UL2's).
        references: random texts that each canary is compared with, for its exposure; 0 leaves it out.

    Returns:
        {'all': {...}, GROUP: {...}}, see `scores`.

    Raises:
        UserError: a file, field or token is wrong, no text is long enough, or `references` are asked for other texts
            than canaries.
    """
    if prefix < 1 or length < 1 or limit < 1 or references < 0:
        given = f'--prefix={prefix} --length={length} --limit={limit} --references={references}'
        raise UserError(f'{given}, expected 1 or more, and 0 or more references. Set them.')
    paths = [path for pattern in patterns for path in match_texts(pattern, '--input')]
    model = load_with_control(checkpoint, step, control)
    before = [model.vocabulary.mode_token_id(token) for token in control]
    texts = _texts(paths, field, unit, group, canaries_only=references > 0)
    probes = find_probes(texts, model.vocabulary, prefix, length)[:limit]
    if not probes:
        shown = ', '.join(paths[:3])
        raise UserError(f'no text of {shown} has {prefix} + {length} tokens. Set --prefix, --length or --unit.')
    ends = [model.vocabulary.eos_id] * model.inputs_end
    inputs = [[*before, *probe.prefix, *ends] for probe in probes]
    generations = model.generate_ids(inputs, length, batch_size=batch_size)
    others = _reference_ids(model.vocabulary, prefix, length, references)
    pairs = [(ids, rest) for ids, probe in zip(inputs, probes, strict=True) for rest in (probe.rest, *others)]
    found = model.likelihoods(*map(list, zip(*pairs)), batch_size=batch_size)
    measured = []
    for i, samples in enumerate(generations):
        own, *rest = found[i * (1 + references) : (i + 1) * (1 + references)]
        written = samples[0].tokens.tolist()
        measured.append(Measured(written, own.correct, own.log_prob, [one.log_prob for one in rest]))
    return scores(probes, measured)


def _reference_ids(vocabulary: Vocabulary, prefix: int, length: int, count: int) -> list[tuple[int, ...]]:
    """What follows the prefix of `count` canaries that were never planted."""
    rng = np.random.Generator(np.random.Philox(key=2**63))  # no seed of --make_canaries is as large
    texts = ((random_text(rng, prefix + length), '') for _ in range(count))  # a word has a token at least
    return [probe.rest for probe in find_probes(texts, vocabulary, prefix, length)]


def find_probes(texts: Iterable[tuple[str, str]], vocabulary: Vocabulary, prefix: int, length: int) -> list[Probe]:
    """The distinct texts with at least prefix + length tokens, in the order of a hash."""
    found: dict[int, Probe] = {}
    for text, group in texts:
        key = stable_hash(text)
        if key not in found and len(ids := vocabulary.encode(text)) >= prefix + length:
            found[key] = Probe(group, tuple(ids[:prefix]), tuple(ids[prefix : prefix + length]))
    return [found[key] for key in sorted(found)]


def _texts(
    paths: Sequence[str], field: str, unit: str, group: str | None, canaries_only: bool
) -> Iterator[tuple[str, str]]:
    """(text, group) of every text."""
    fix = 'Set --references=0, or --input to a file of --make_canaries.'
    for path in paths:
        if is_plain_text(path):
            if canaries_only:
                raise UserError(f'{path}: --references compares canaries with other random texts. {fix}')
            yield from ((text, '') for _, _, text in plain_texts(plain_text(path), unit, _NO_LIMIT, named=path))
            continue
        for row in read_rows(path):
            text = require_field(row.value, field, row.where, '--field')
            is_canary = isinstance(row.value, Mapping) and 'canary' in row.value and 'repeats' in row.value
            if canaries_only and not is_canary:
                raise UserError(f"{row.where}: --references compares canaries, the row has no 'canary'. {fix}")
            named = group or ('repeats' if is_canary else None)
            yield text, '' if named is None else str(find_field(row.value, named, row.where, '--group'))


def scores(probes: Sequence[Probe], measured: Sequence[Measured]) -> dict[str, Any]:
    """The results over all probes and for each group.

    Returns:
        {'all': {...}, GROUP: {...}} with

            texts           the number of texts
            exact           the share continued exactly, token by token
            tokens          the mean share of tokens before the first wrong one
            accuracy        the share of tokens that are the most likely ones after the true text (teacher forcing)
            log_likelihood  nats per token of the true text
            exposure        bits, see `exposures`; with references only
            exposure_fit    the same by a fitted distribution
            intervals       the 95 % interval of each: Wilson's of 'exact', bootstrap over texts of the others
    """
    groups: dict[str, list[int]] = {'all': []}
    for i, probe in enumerate(probes):
        for name in {'all', probe.group or 'all'}:
            groups.setdefault(name, []).append(i)
    values = [_values(probe, one) for probe, one in zip(probes, measured, strict=True)]
    by_number = lambda name: (name != 'all', float(name) if name.replace('.', '', 1).isdigit() else 0.0, name)
    return {name: _summary([values[i] for i in groups[name]]) for name in sorted(groups, key=by_number)}


def _values(probe: Probe, one: Measured) -> dict[str, float]:
    """The measures of one text."""
    length = len(probe.rest)
    pairs = enumerate(zip(probe.rest, [*one.continuation, *[-1] * length]))
    share = next((i for i, (a, b) in pairs if a != b), length) / length
    found = {'exact': float(share == 1), 'tokens': share, 'accuracy': one.correct / length}
    found['log_likelihood'] = one.log_prob / length
    return found | (exposures(one.log_prob, one.references) if one.references else {})


def _summary(values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The means of a group's texts, with their intervals."""
    columns = {name: [one[name] for one in values] for name in values[0]}
    intervals = {name: bootstrap_interval([[column]]) for name, column in columns.items()}
    intervals['exact'] = share_interval(int(sum(columns['exact'])), len(values))
    means = {name: float(np.mean(column)) for name, column in columns.items()}
    return {'texts': len(values)} | means | {'intervals': {name: list(pair) for name, pair in intervals.items()}}


def exposures(log_prob: float, references: Sequence[float]) -> dict[str, float]:
    """The exposure of a canary, in bits: -log2 of the share of random texts that are at least as likely.

    0 to 1 bit is chance: a text that was not learned has about 1.44 on average.

    Args:
        log_prob: of the canary.
        references: of the random texts, which stand for the whole space.

    Returns:
        'exposure' by the canary's rank among them (arXiv:1802.08232, section 4.2), at most log2(references + 1), and
        'exposure_fit' by a skew-normal distribution fitted to them (section 4.3), which tells canaries apart that are
        likelier than every reference.
    """
    rank = 1 + sum(other >= log_prob for other in references)
    return {
        'exposure': math.log2((len(references) + 1) / rank),
        'exposure_fit': -_skew_normal_log_tail(log_prob, references) / math.log(2),
    }


def _skew_normal_log_tail(value: float, sample: Sequence[float]) -> float:
    """Natural logarithm of P(X >= value) of the skew-normal distribution with the moments of a sample."""
    from scipy.stats import norm, skewnorm  # takes a while to import

    values = np.asarray(sample, np.float64)
    scale = max(float(values.std()), 1e-6)
    skew = float(np.clip(np.mean(((values - values.mean()) / scale) ** 3), -0.99, 0.99))
    ratio = abs(skew) ** (2 / 3)  # the moments of a skew-normal distribution determine its shape, scale and place
    delta = math.copysign(math.sqrt(math.pi / 2 * ratio / (ratio + ((4 - math.pi) / 2) ** (2 / 3))), skew)
    delta = float(np.clip(delta, -0.995, 0.995))
    width = scale / math.sqrt(1 - 2 * delta**2 / math.pi)
    place = float(values.mean()) - width * delta * math.sqrt(2 / math.pi)
    shape, z = delta / math.sqrt(1 - delta**2), (value - place) / width
    tail = float(skewnorm.sf(z, shape))
    if tail > 1e-12:
        return math.log(tail)
    # Far out SciPy's integral vanishes; there the tail is the density over how fast its logarithm falls.
    slope = z if shape >= 0 else (1 + shape**2) * z
    return float(math.log(2) + norm.logpdf(z) + norm.logcdf(shape * z) - math.log(slope))


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Formats the result as one line per group."""
    lines = []
    for name, one in found.items():
        low, high = one['intervals']['exact']
        exposure = (
            f'; exposure {one["exposure"]:.1f} bits, fitted {one["exposure_fit"]:.1f}' if 'exposure' in one else ''
        )
        lines.append(
            f'{name}: {one["exact"]:.1%} of {one["texts"]:,} texts continued word for word (95 % interval {low:.1%} to '
            f'{high:.1%}); on average the first {one["tokens"]:.1%} of the tokens match; given the true text, '
            f'{one["accuracy"]:.1%} of the tokens are right, {one["log_likelihood"]:.2f} nats per token{exposure}'
        )
    return lines
