"""Reads T5X's legacy checkpoints (a zarr v2 folder for each array) and puts their parameters into a model."""

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from t5flan.models.model import Model
from t5flan.models.parameters import named_parameters, replace_parameters


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """'encoder/layers_0/mlp/wo/kernel' -> float32 array, of the only step in `folder`."""
    (step,) = folder.glob('checkpoint_*')
    return {array.name.removeprefix('target.').replace('.', '/'): _read_zarr(array) for array in step.glob('target.*')}


def _read_zarr(folder: Path) -> np.ndarray:
    """A little-endian float32 array in gzipped chunks, one file each ('0.1' is row 0, column 1)."""
    header = json.loads((folder / '.zarray').read_text())
    assert header['dtype'] == '<f4' and header['compressor']['id'] == 'gzip' and header['order'] == 'C', header
    array = np.full(header['shape'], np.nan, np.float32)
    for file in folder.iterdir():
        if re.fullmatch(r'[\d.]+', file.name):
            chunk = np.frombuffer(zlib.decompress(file.read_bytes(), wbits=31), np.float32).reshape(header['chunks'])
            place = tuple(
                slice(int(i) * size, (int(i) + 1) * size)
                for i, size in zip(file.name.split('.'), header['chunks'], strict=True)
            )
            array[place] = chunk[tuple(slice(size) for size in array[place].shape)]
    assert not np.isnan(array).any(), f'{folder} lacks a chunk'
    return array


def from_t5x(model: Model, parameters: Mapping[str, np.ndarray]) -> Model:
    """`model` with parameters of T5X's examples/t5 (a name for each layer) or scalable_t5 (layers on axis 1)."""

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name in parameters:
            return parameters[name].reshape(shape)
        side = name.split('/')[0]
        scanned = name.replace('/layers/', f'/{side}/').replace('/relpos_bias/', f'/{side}/relpos_bias/')
        if scanned in parameters:
            return np.moveaxis(parameters[scanned], 1, 0).reshape(shape)
        layers = [parameters[name.replace('/layers/', f'/layers_{i}/')] for i in range(shape[0])]
        return np.stack(layers).reshape(shape)  # T5X merges heads and head_dim

    return replace_parameters(model, {name: value(name, leaf.shape) for name, leaf in named_parameters(model).items()})
