"""The adapters of a `LanguageModel`: read from their folders, and chosen by name for each prompt."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5flan import sharding as sharding_lib
from t5flan.adapters.adapter import fingerprint
from t5flan.adapters.rows import stack
from t5flan.errors import UserError, did_you_mean
from t5flan.models.model import Model
from t5flan.models.parameters import logical_axes
from t5flan.training import checkpoints

Choice = str | None | Sequence[str | None]
"""The adapter of all prompts, or of each; None is the base alone."""


def add_adapters(model: Model, base: str, folders: Mapping[str, Any], sharding: sharding_lib.Sharding | None) -> Model:
    """The model with the adapters in these folders, of which each row of a batch may have one.

    Args:
        model: the base.
        base: its folder, for messages.
        folders: name -> the workdir of an adapter's run, or one of its steps.
        sharding: the mesh that holds the parameters, if any.

    Raises:
        UserError: a folder holds no adapter, one of another base, or one whose method cannot be chosen by row.
    """
    own = fingerprint(model)
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        record = checkpoints.read_description(folder).adapter
        if record is None:
            raise UserError(f'{os.fspath(folder)} holds a whole model, expected an adapter of {base}. Load it alone.')
        if record['fingerprint'] not in (None, own):
            problem = f'{os.fspath(folder)} is an adapter of another base, {record["base"]}, not of {base}'
            raise UserError(f'{problem}: their parameters differ. Load it with its own base.')
        found[name] = checkpoints.restore_adapter(folder, model)
    model = stack(model, found)
    if sharding is None:
        return model
    return jax.device_put(model, sharding_lib.tree_shardings(sharding, model, logical_axes(model)))


def choice_of(choice: Choice, rows: Sequence[int], count: int) -> Choice:
    """The choice for some of `count` rows, which may be repeated.

    Raises:
        UserError: there is not one name for each row.
    """
    if choice is None or isinstance(choice, str):
        return choice
    _check_count(choice, count)
    return [choice[row] for row in rows]


def adapter_numbers(names: Sequence[str], choice: Choice, count: int) -> list[int] | None:
    """The number of each prompt's adapter, from 1, and 0 without one; None if the model has no adapters.

    Args:
        names: the adapters of the model.
        choice: a name for all `count` prompts, or one for each.

    Raises:
        UserError: a name is unknown, or there are not `count` of them.
    """
    chosen = [choice] * count if choice is None or isinstance(choice, str) else list(choice)
    _check_count(chosen, count)
    for row, name in enumerate(chosen):
        if name is not None and name not in names:
            known = f'the model has {", ".join(names)}' if names else 'the model was loaded without adapters'
            hint = did_you_mean(name, names) or '.'
            fix = '' if names else ' Set adapters={NAME: FOLDER} (--adapters=NAME=FOLDER).'
            raise UserError(f'row {row} has adapter={name!r}; {known}{hint}{fix}')
    numbers = {None: 0} | {name: number for number, name in enumerate(names, 1)}
    return [numbers[name] for name in chosen] if names else None


def _check_count(names: Sequence[str | None], count: int) -> None:
    if len(names) != count:
        raise UserError(f'got {len(names)} adapters for {count} rows, expected a name or None for each. Set adapter.')
