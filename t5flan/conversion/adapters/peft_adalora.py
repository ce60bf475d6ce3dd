"""AdaLoRA in PEFT's format. A file holds, of every kernel, only the ranks that were not pruned.

t5flan, one layer                        PEFT, after the name of the module; r <= R ranks are left
query/lora_a [D, R]                      lora_A [r, D]
query/lora_e [R]                         lora_E [r, 1]
query/lora_b [R, N, H]                   lora_B [N H, r]

`rank_pattern` of adapter_config.json says which of the R are left; the others are zero here.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5flan.adapters.adapter import adapter_arrays
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.conversion import names
from t5flan.conversion.adapters.folder import abstract_adapted
from t5flan.conversion.checkpoint import match_arrays
from t5flan.conversion.safetensors_files import Stored
from t5flan.models.config import ModelConfig

Modules = Mapping[tuple[str, int | None], str]  # (path of a kernel, layer) -> the name of its module
_PREFIX = 'base_model.model.'
_FIELDS = {
    'init_r': 'init_rank',
    'target_r': 'target_rank',
    'lora_alpha': 'alpha',
    'tinit': 'tinit',
    'tfinal': 'tfinal',
    'deltaT': 'delta_t',
    'beta1': 'beta1',
    'beta2': 'beta2',
    'orth_reg_weight': 'orth_reg_weight',
    'total_step': 'total_steps',
}
"""PEFT's fields -> settings."""


def read(
    weights: str, fields: Mapping[str, Any], stored: Mapping[str, Stored], config: ModelConfig, modules: Modules
) -> tuple[AdaLora, dict[str, np.ndarray]]:
    """The settings and arrays of an adapter.

    Args:
        weights: the file of the arrays, for messages.
        fields: the content of adapter_config.json.
        stored: the arrays of the file.

    Raises:
        UserError: an array is missing or has another shape, or a setting is not valid.
    """
    paths = {path for (path, _), module in modules.items() if f'{_PREFIX}{module}.lora_A' in stored}
    given = {ours: fields[theirs] for theirs, ours in _FIELDS.items()}
    given |= {'alpha': float(given['alpha']), 'target_rank': min(given['target_rank'], given['init_rank'])}
    settings = AdaLora(**given, targets=tuple(sorted(map(re.escape, paths))))
    pattern = {key.removeprefix(_PREFIX): kept for key, kept in (fields.get('rank_pattern') or {}).items()}
    expected, kept_of = {}, {}
    for (path, layer), module in modules.items():
        matrix = names.shapes(config)[path].matrix
        if path in paths and matrix is not None:
            kept = np.flatnonzero(pattern.get(f'{module}.lora_E', [True] * settings.init_rank))
            kept_of[path, layer] = kept
            shapes = {'A': (len(kept), matrix[0]), 'B': (matrix[1], len(kept)), 'E': (len(kept), 1)}
            for part, shape in shapes.items():
                expected[path, layer, part] = (f'{_PREFIX}{module}.lora_{part}', [shape])
    fix = 'Copy the folder again, or set --base to the model it was trained on.'
    found = match_arrays(weights, 'adapter_config.json', fix, expected, stored)
    own = adapter_arrays(abstract_adapted(config, settings))
    arrays = {name: np.zeros(x.shape, np.float32) for name, x in own.items()}
    for (path, layer), kept in kept_of.items():
        a, b, e = (found[path, layer, part].read().astype(np.float32) for part in 'ABE')
        ours = {part: arrays[f'{path.removesuffix("kernel")}lora_{part}'] for part in 'abe'}
        ours = {part: array if layer is None else array[layer] for part, array in ours.items()}
        ours['a'][..., kept] = a.T.reshape(*ours['a'].shape[:-1], len(kept))
        ours['b'][kept] = b.T.reshape(len(kept), *ours['b'].shape[1:])
        ours['e'][kept] = e[:, 0]
    return settings, arrays


def write(
    settings: AdaLora, arrays: Mapping[str, np.ndarray], modules: Modules, steps: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays as PEFT stores them, and the fields of adapter_config.json that are AdaLoRA's own.

    Args:
        steps: those that were trained. PEFT requires a total from which tinit and tfinal leave some.
    """
    singular = [x for name, x in arrays.items() if name.endswith('/lora_e')]
    pruned = any(np.any(x == 0) for x in singular) and any(np.any(x != 0) for x in singular)
    theirs, pattern = {}, {}
    for (path, layer), module in modules.items():
        stem = path.removesuffix('kernel')
        if f'{stem}lora_e' not in arrays:
            continue
        a, b, e = (arrays[f'{stem}lora_{part}'][() if layer is None else layer] for part in 'abe')
        left = (e != 0) | (not pruned)
        theirs[f'{_PREFIX}{module}.lora_A'] = a.reshape(-1, len(e))[:, left].T
        theirs[f'{_PREFIX}{module}.lora_B'] = b.reshape(len(e), -1)[left].T
        theirs[f'{_PREFIX}{module}.lora_E'] = e[left, None]
        pattern[f'{module}.lora_E'] = left.tolist()
    fields = {theirs_name: getattr(settings, ours) for theirs_name, ours in _FIELDS.items()}
    total = settings.total_steps or max(steps, settings.tinit + settings.tfinal + 1)
    fields |= {'peft_type': 'ADALORA', 'total_step': total, 'rank_pattern': pattern if pruned else None}
    whole = {name: np.ascontiguousarray(x.astype(np.float32)) for name, x in theirs.items()}
    return whole, fields | {'lora_dropout': 0.0, 'bias': 'none'}
