"""Which change of a setting would make a training step fit the memory, by the estimate of `t5flan plan`."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from t5flan.errors import UserError
from t5flan.mesh import MESH_AXES
from t5flan.planning.cost import Memory, batch_of, memory_of
from t5flan.training.distillation.teacher import teacher_config


def changes_that_fit(settings: Mapping[str, Any], devices: int, needed: int, limit: int) -> list[str]:
    """The changes, as gin settings, of which each alone makes the step fit; cheapest first, at most one of a kind.

    What the compiler needs is taken as it is: only what a change saves is estimated.

    Args:
        settings: those of the run.
        devices: how many devices there are.
        needed: bytes that the step needs on each.
        limit: bytes that each has.
    """
    now = estimated_memory(settings, devices)
    if now is None:
        return []
    found: dict[str, str] = {}
    for kind, text, changed in _changes(settings, devices):
        estimate = None if kind in found else estimated_memory(changed, devices)
        if estimate is not None and needed - (now.total - estimate.total) <= limit:
            found[kind] = text
    return list(found.values())


def estimated_memory(settings: Mapping[str, Any], devices: int) -> Memory | None:
    """Memory of each device by the estimate of `t5flan plan`; None if the settings do not divide over the devices."""
    model, data = settings['model'], settings['data']
    batch = batch_of(model, data.batch_size, data.feature_lengths)
    try:
        teacher = teacher_config(settings['loss'], model)
        return memory_of(model, batch, settings['optimizer'], settings['mesh'], devices, teacher)
    except UserError:
        return None


def _changes(settings: Mapping[str, Any], devices: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Kind of change, the gin settings, and the settings after it."""
    model, optimizer, mesh, rows = (
        settings['model'],
        settings['optimizer'],
        settings['mesh'],
        settings['data'].batch_size,
    )
    order = ('none', 'minimal', 'full')
    for remat in order[order.index(model.remat) + 1 :]:
        changed = dataclasses.replace(model, remat=remat)
        yield 'remat', f"ModelConfig.remat='{remat}'", {**settings, 'model': changed}
    parts = optimizer.microbatches
    while rows % (parts := 2 * parts) == 0:
        changed = dataclasses.replace(optimizer, microbatches=parts)
        yield 'microbatches', f'OptimizerConfig.microbatches={parts}', {**settings, 'optimizer': changed}
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    sizes[next((axis for axis, size in sizes.items() if size == -1), 'data')] = -1
    fixed = sizes['context'] * sizes['tensor']
    if fixed > 0 and devices % fixed == 0:
        for fsdp in range(max(sizes['fsdp'], 1) + 1, devices // fixed + 1):
            if devices // fixed % fsdp == 0:
                changed = dataclasses.replace(mesh, data=devices // fixed // fsdp, fsdp=fsdp)
                text = f'MeshConfig.data={changed.data} and MeshConfig.fsdp={fsdp}'
                yield 'fsdp', text, {**settings, 'mesh': changed}
