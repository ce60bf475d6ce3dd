"""The weighted sum of adapters in folders of t5flan: 'runs/de:0.7,runs/fr:0.3' -> one adapter of their base."""

import math
from typing import Any

from t5flan.adapters.combine import Weighted, combine
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.errors import UserError
from t5flan.training import checkpoints


def read(sources: str, convention: str) -> adapter_folder.Derived:
    """Reads the adapters of `sources`, folders with their weights, and combines them; see `adapters.combine`.

    Raises:
        UserError: a source is not DIR:WEIGHT or holds no adapter, or the adapters do not compose.
    """
    found: list[Weighted] = []
    records: list[dict[str, Any]] = []
    for source in sources.split(','):
        where, weight = _parsed(source.strip())
        description = checkpoints.read_description(where)
        if description.adapter is None:
            raise UserError(f'{where} holds a whole model, not an adapter: it cannot be combined. Leave it out.')
        record = dict(description.adapter)
        if records and record['fingerprint'] != records[0]['fingerprint']:
            bases = f'{record["base"]} and {records[0]["base"]}'
            problem = f'{where} and {found[0].name} are adapters of different bases, {bases}'
            raise UserError(f'{problem}: they do not compose. Combine adapters of one base.')
        records.append(record | {'base': f'{checkpoints.base_folder(checkpoints.checkpoint_root(where), description)}'})
        found.append(Weighted(where, weight, *adapter_folder.read_arrays(where)))
    base = f'{records[0]["base"]}/{checkpoints.CHECKPOINTS}/{records[0]["step"]}'
    return adapter_folder.Derived(base, records[0]['fingerprint'], *combine(found, convention))


def _parsed(source: str) -> tuple[str, float]:
    where, _, text = source.rpartition(':')
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not where or not math.isfinite(weight):
        raise UserError(
            f'{source!r} is not a folder with its weight, expected DIR:WEIGHT such as runs/de:0.7. Set SRC.'
        )
    return where, weight
