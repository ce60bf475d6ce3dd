"""PEFT's adapter folders (adapter_config.json, adapter_model.safetensors) <-> t5flan's. torch is not needed.

t5flan, one layer                        PEFT, after 'base_model.model.' and the name of the module
query/lora_a [D, R]                      lora_A.weight [R, D]
query/lora_b [R, N, H]                   lora_B.weight [N H, R]
query/lora_bias [N, H]                   lora_B.bias [N H]
query/dora_magnitude [N, H]              lora_magnitude_vector [N H]
key/ia3 [K, H], wo/ia3 [F]               ia3_l [K H, 1], ia3_l [1, F]
lora_a, lora_e, lora_b of AdaLoRA        see peft_adalora.py
prompts and prefixes                     see peft_virtual_tokens.py
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5flan.adapters.adapter import adapter_arrays
from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.llama_adapter import LlamaAdapter
from t5flan.adapters.methods.lora import Lora
from t5flan.conversion import names
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.conversion.adapters import peft_adalora, peft_virtual_tokens
from t5flan.conversion.checkpoint import match_arrays
from t5flan.conversion.huggingface_config import family_of, read_json, table_of
from t5flan.conversion.safetensors_files import FolderWriter, Stored, read_header
from t5flan.errors import UserError, reading
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_SUFFIXES = {
    'lora_a': 'lora_A.weight',
    'lora_b': 'lora_B.weight',
    'lora_bias': 'lora_B.bias',
    'dora_magnitude': 'lora_magnitude_vector',
    'ia3': 'ia3_l',
}
_UNSUPPORTED = ('modules_to_save', 'layers_to_transform', 'layer_replication', 'target_parameters', 'fan_in_fan_out')


class PeftAdapter(NamedTuple):
    """An adapter of PEFT, with t5flan's settings and arrays, and the content of its adapter_config.json."""

    settings: Adapter
    arrays: dict[str, np.ndarray]
    config: dict[str, Any]


def read(folder: Path, base: str) -> PeftAdapter:
    """Reads an adapter of the model in the checkpoint folder `base`.

    Raises:
        UserError: files are missing or broken, the method is not supported, or the arrays do not fit the base.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f'{folder} has no {CONFIG}. Give a folder written by save_pretrained of PEFT.')
    with reading(f'{folder / CONFIG}', 'Save the adapter again.'):
        return _read(folder, base)


def _read(folder: Path, base: str) -> PeftAdapter:
    config = checkpoints.read_description(base).model
    fields = read_json(folder / CONFIG)
    stored, where = _read_weights(folder), str(folder / WEIGHTS)
    for name in _UNSUPPORTED:
        if fields.get(name):
            raise UserError(f'{folder / CONFIG}: {name}={fields[name]!r} is not supported. Train without it.')
    if fields.get('peft_type') in ('PROMPT_TUNING', 'P_TUNING', 'PREFIX_TUNING'):
        return PeftAdapter(*peft_virtual_tokens.read_virtual_tokens(where, fields, stored, config), fields)
    modules = _modules(config, base)
    if fields.get('peft_type') == 'ADAPTION_PROMPT':
        return PeftAdapter(*peft_virtual_tokens.read_gated_prompts(where, fields, stored, config, modules), fields)
    if fields.get('peft_type') == 'ADALORA':
        adalora, arrays = peft_adalora.read(where, fields, stored, config, modules)
        return PeftAdapter(adalora, arrays, fields)
    settings = _settings(folder, fields, stored, modules)
    model = adapter_folder.abstract_adapted(config, settings)
    pieces = _pieces(config, base, adapter_arrays(model))
    expected = {key: (piece.name, [piece.shape]) for key, piece in pieces.items()}
    fix = f'Copy the folder again, or set --base to the model it was trained on (given is {base}).'
    found = match_arrays(where, CONFIG, fix, expected, stored)
    arrays = {}
    for name, leaf in adapter_arrays(model).items():
        layers = [pieces[key] for key in pieces if key[0] == name]
        parts = [_ours(found[name, piece.layer].read(), piece) for piece in layers]
        arrays[name] = np.stack(parts) if layers[0].layer is not None else parts[0]
        assert arrays[name].shape == leaf.shape, name
    return PeftAdapter(settings, arrays, fields)


def write(folder: Path, where: str) -> None:
    """Writes the adapter of a checkpoint folder for PEFT; `folder` exists and is empty.

    Raises:
        UserError: `where` holds no adapter, or PEFT has no such adapter.
    """
    description = checkpoints.read_description(where)
    if description.adapter is None:
        raise UserError(f'{where} holds a whole model, not an adapter. Set --to=hf.')
    settings, arrays = adapter_folder.read_arrays(where)
    config = description.model
    if isinstance(settings, peft_virtual_tokens.VirtualTokens):
        theirs, fields = peft_virtual_tokens.virtual_tokens(settings, arrays, config)
    elif isinstance(settings, LlamaAdapter):
        theirs, fields = peft_virtual_tokens.gated_prompts(settings, arrays, config, _modules(config, where))
    elif isinstance(settings, AdaLora):
        modules, step = _modules(config, where), checkpoints.find_step(where)
        theirs, fields = peft_adalora.write(settings, arrays, modules, step)
        fields |= _shared_fields(config, modules, arrays)
    elif not isinstance(settings, Lora | Ia3):
        raise UserError(f'PEFT has no adapter like {type(settings).__name__}, the method of {where}. Set --to=t5flan.')
    else:
        theirs, fields = {}, _fields(config, where, settings, arrays)
        for (name, layer), piece in _pieces(config, where, arrays).items():
            array = arrays[name] if layer is None else arrays[name][layer]
            theirs[piece.name] = _theirs(array.astype(np.float32), piece)
    writer = FolderWriter(folder, {name: (x.shape, x.dtype) for name, x in sorted(theirs.items())}, 2**62)
    for name, array in theirs.items():
        writer.write(name, array)
    writer.close()
    os.rename(folder / 'model.safetensors', folder / WEIGHTS)
    kept = Path(checkpoints.checkpoint_root(where)) / CONFIG
    fields = read_json(kept) if kept.is_file() else fields
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n', 'utf-8')


def _read_weights(folder: Path) -> dict[str, Stored]:
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / 'adapter_model.bin').exists():
        problem = f'{folder} holds its weights as adapter_model.bin, a pickle file: loading one can run any code'
        raise UserError(f'{problem}, so it is not read. Save it again with PEFT, which writes {WEIGHTS}.')
    raise UserError(f'{folder} has no {WEIGHTS}. Give a folder written by save_pretrained of PEFT.')


def _modules(config: ModelConfig, where: str) -> dict[tuple[str, int | None], str]:
    """(path of a kernel, layer) -> the name of its module in transformers."""
    table = table_of(family_of(config, where))
    return {
        (shape.name, layer): names.hf_name(table, shape, layer).removesuffix('.weight')
        for shape, layer in names.all_pieces(config)
        if shape.matrix is not None and shape.name.endswith('/kernel')
    }


def _settings(
    folder: Path, fields: Mapping[str, Any], stored: Mapping[str, Stored], modules: Mapping[tuple[str, int | None], str]
) -> Adapter:
    """The settings of an adapter, for the kernels that the file has arrays for."""
    kind = fields.get('peft_type')
    held = {name.removeprefix(_PREFIX) for name in stored}
    found = {path: module for (path, _), module in modules.items() if any(n.startswith(f'{module}.') for n in held)}
    if not found:
        raise UserError(f'{folder / WEIGHTS} has no array of a layer of the base, but {min(held, default="none")}.')
    targets = tuple(sorted(map(re.escape, found)))
    if kind == 'IA3':
        inner = fields.get('feedforward_modules') or []
        on_inputs = [path for path, module in found.items() if _is_listed(module, inner)]
        outputs = tuple(re.escape(path) for path in sorted(found) if path not in on_inputs)
        return Ia3(targets=outputs, input_targets=tuple(map(re.escape, sorted(on_inputs))))
    if kind != 'LORA':
        known = 'LORA, ADALORA, IA3, PROMPT_TUNING, P_TUNING, PREFIX_TUNING or ADAPTION_PROMPT'
        raise UserError(
            f'{folder / CONFIG}: peft_type={kind!r} is not supported, expected {known}. Convert one of these.'
        )
    ranks = {}
    for path, module in found.items():
        array = stored.get(f'{_PREFIX}{module}.lora_A.weight')
        if array is not None and array.shape[0] != fields['r']:
            ranks[re.escape(path)] = array.shape[0]
    given = fields.get('alpha_pattern') or {}
    alphas = {
        re.escape(path): float(_of_pattern(given, module, fields['lora_alpha'])) for path, module in found.items()
    }
    alphas = {path: alpha for path, alpha in alphas.items() if alpha != fields['lora_alpha']}
    kind_of = Dora if fields.get('use_dora') else Lora
    return kind_of(
        rank=fields['r'],
        alpha=float(fields['lora_alpha']),
        rslora=bool(fields.get('use_rslora')),
        targets=targets,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        bias=bool(fields.get('lora_bias')),
    )


def _is_listed(module: str, listed: Any) -> bool:
    """Whether PEFT's list of modules, or its regular expression, names this module."""
    if isinstance(listed, str):
        return re.fullmatch(listed, module) is not None
    return any(module == name or module.endswith(f'.{name}') for name in listed)


def _of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's value for a module: that of the first pattern that matches the end of its name."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf'(.*\.)?({key})', module)), default)


class _Piece(NamedTuple):
    """One layer of an array: its name and shape in PEFT's file, and its shape here."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    ours: tuple[int, ...]
    part: str


def _pieces(config: ModelConfig, where: str, arrays: Mapping[str, Any]) -> dict[tuple[str, int | None], _Piece]:
    """(name, layer) -> the piece, for every layer of every array of an adapter."""
    modules, shapes = _modules(config, where), names.shapes(config)
    found = {}
    for name, array in arrays.items():
        path, _, part = name.rpartition('/')
        kernel = shapes[f'{path}/kernel']
        for layer in kernel.pieces:
            ours = tuple(array.shape if layer is None else array.shape[1:])
            theirs = _their_shape(part, ours, kernel.matrix)
            full = f'{_PREFIX}{modules[kernel.name, layer]}.{_SUFFIXES[part]}'
            found[name, layer] = _Piece(full, theirs, layer, ours, part)
    return found


def _their_shape(part: str, ours: tuple[int, ...], matrix: tuple[int, int] | None) -> tuple[int, ...]:
    assert matrix is not None
    inputs, outputs = matrix
    size = math.prod(ours)
    if part == 'lora_a':
        return (size // inputs, inputs)
    if part == 'lora_b':
        return (outputs, size // outputs)
    if part == 'ia3':  # on inputs exactly if the axes are those of the inputs, which only the MLP's last kernel has
        return (1, size) if len(ours) == 1 and size == inputs and size != outputs else (size, 1)
    return (size,)


def _ours(array: np.ndarray, piece: _Piece) -> np.ndarray:
    array = array.astype(np.float32)
    return (array.T if piece.part in ('lora_a', 'lora_b') else array).reshape(piece.ours)


def _theirs(array: np.ndarray, piece: _Piece) -> np.ndarray:
    if piece.part in ('lora_a', 'lora_b'):
        return np.ascontiguousarray(array.reshape(piece.shape[::-1]).T)
    return array.reshape(piece.shape)


def _fields(config: ModelConfig, where: str, settings: Lora | Ia3, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The content of adapter_config.json; base_model_name_or_path is for the user to set."""
    modules = _modules(config, where)
    adapted, fields = _adapted_paths(arrays), _shared_fields(config, modules, arrays)
    if isinstance(settings, Ia3):
        patterns = settings.input_targets
        inner = {path for path in adapted if any(re.fullmatch(pattern, path) for pattern in patterns)}
        return fields | {'peft_type': 'IA3', 'feedforward_modules': _names_of(inner, modules)}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for (path, _), module in modules.items():
        if path in adapted:
            rank = arrays[f'{path.removesuffix("kernel")}lora_b'].shape[0 if modules.get((path, None)) else 1]
            ranks |= {module: rank} if rank != settings.rank else {}
            alpha = next((x for key, x in settings.alpha_pattern.items() if re.fullmatch(key, path)), settings.alpha)
            alphas |= {module: alpha} if alpha != settings.alpha else {}
    return fields | {
        'peft_type': 'LORA',
        'r': settings.rank,
        'lora_alpha': settings.alpha,
        'lora_dropout': 0.0,
        'bias': 'none',
        'use_rslora': settings.rslora,
        'use_dora': isinstance(settings, Dora),
        'lora_bias': settings.bias,
        'rank_pattern': ranks,
        'alpha_pattern': alphas,
    }


def _adapted_paths(arrays: Mapping[str, Any]) -> set[str]:
    return {f'{name.rpartition("/")[0]}/kernel' for name in arrays}


def _shared_fields(
    config: ModelConfig, modules: Mapping[tuple[str, int | None], str], arrays: Mapping[str, Any]
) -> dict[str, Any]:
    """What adapter_config.json says of every method that adapts kernels."""
    return {
        'base_model_name_or_path': None,
        'inference_mode': True,
        'task_type': 'CAUSAL_LM' if config.architecture == 'decoder_only' else 'SEQ_2_SEQ_LM',
        'target_modules': _names_of(_adapted_paths(arrays), modules),
    }


def _names_of(paths: set[str], modules: Mapping[tuple[str, int | None], str]) -> list[str]:
    """The modules of these kernels, in the shortest form."""
    return _shortest(sorted(name for (path, _), name in modules.items() if path in paths), list(modules.values()))


def _shortest(chosen: list[str], every: list[str]) -> list[str]:
    """The last parts of the names ('q', 'v') if they mean exactly these modules, else the whole names."""
    last = sorted({name.rpartition('.')[2] for name in chosen})
    return last if sorted(name for name in every if name.rpartition('.')[2] in last) == chosen else chosen
