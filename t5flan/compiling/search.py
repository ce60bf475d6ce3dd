"""`t5flan compile --fit`: mesh, microbatches and remat of the fastest step that fits.

All choices are ranked by estimates from shapes. Estimates do not know what a program reads and writes, which `remat`
changes most: so the settings as they are and the best of each `remat` are compiled, and the programs decide.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from t5flan.compiling.fitting import estimated_memory
from t5flan.compiling.targets import Target
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.planning.chips import Chip
from t5flan.planning.cost import GIB, Memory, activation_bytes, batch_of, count_parameters
from t5flan.sharding import abstract_sharding
from t5flan.training.throughput import model_flops

RECOMPUTED = {'none': 1.0, 'minimal': 7 / 6, 'full': 4 / 3}
"""Executed over model FLOPs by ModelConfig.remat: 'full' repeats the forward pass, 'minimal' about half of it."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings to try, and what is estimated of them.

    Attributes:
        settings: arguments of `training.trainer.train`.
        seconds: estimated for a step.
        bytes: estimated for each device.
    """

    settings: Mapping[str, Any]
    seconds: float
    bytes: float

    @property
    def name(self) -> str:
        """The gin settings, as on a command line."""
        mesh, parts = self.settings['mesh'], self.settings['optimizer'].microbatches
        sizes = [f'MeshConfig.{axis}={getattr(mesh, axis)}' for axis in ('data', 'fsdp', 'tensor', 'context')]
        found = [*sizes, f'OptimizerConfig.microbatches={parts}', f"ModelConfig.remat='{self.settings['model'].remat}'"]
        return ' '.join(f'--gin.{one}' for one in found)


def choices(settings: Mapping[str, Any], target: Target) -> list[Choice]:
    """The meshes, microbatches and remat that divide the run and fit by estimate, fastest by estimate first.

    Args:
        settings: arguments of `training.trainer.train`; those that are searched are replaced.
        target: the devices; its chip has a data sheet.

    Raises:
        UserError: the target is a CPU.
    """
    chip, devices = target.chip, len(target.devices)
    if chip is None:
        raise UserError(f'--fit ranks by the speed of a chip, but --topology={target.name}. Name a TPU or GPU')
    limit = chip.memory_gib * GIB / chip.devices
    held: dict[MeshConfig, Memory | None] = {}
    found: list[Choice] = []
    for changed in _all(settings, devices):
        size = _bytes(changed, devices, held)
        if size is not None and size <= limit:
            found.append(Choice(changed, estimated_seconds(changed, chip, devices), size))
    return sorted(found, key=lambda one: (one.seconds, one.bytes))


def worth_compiling(found: list[Choice], settings: Mapping[str, Any], devices: int, tries: int) -> list[Choice]:
    """The settings as they are, if they are among the choices, and the best of each remat in turns; fastest first."""
    given = [choice for choice in found if _place(choice.settings, devices) == _place(settings, devices)]
    of_remat = ([one for one in found if one.settings['model'].remat == remat] for remat in RECOMPUTED)
    in_turns = [one for turn in itertools.zip_longest(*of_remat) for one in turn if one is not None]
    chosen = [*given, *(one for one in in_turns if one not in given)][:tries]
    return sorted(chosen, key=lambda one: one.seconds)


def _place(settings: Mapping[str, Any], devices: int) -> tuple[Any, ...]:
    """What is searched, with numbers for the -1 of a mesh; (None,) if it does not divide."""
    try:
        mesh = abstract_sharding(settings['mesh'], devices).mesh
    except UserError:
        return (None,)
    return tuple(mesh.shape.items()), settings['optimizer'].microbatches, settings['model'].remat


def _bytes(settings: Mapping[str, Any], devices: int, held: dict[MeshConfig, Memory | None]) -> float | None:
    """Bytes of each device; `held` keeps the state's, which takes a second to count and depends on the mesh alone."""
    model, mesh, data, optimizer = (settings[name] for name in ('model', 'mesh', 'data', 'optimizer'))
    if mesh not in held:
        held[mesh] = estimated_memory(settings, devices)
    memory = held[mesh]
    if memory is None:
        return None
    batch, sharding = batch_of(model, data.batch_size, data.feature_lengths), abstract_sharding(mesh, devices)
    activations = activation_bytes(model, batch, optimizer.microbatches, sharding)
    return dataclasses.replace(memory, activations=activations).total


def _all(settings: Mapping[str, Any], devices: int) -> Iterator[dict[str, Any]]:
    rows = settings['data'].batch_size
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    for fsdp, tensor, context in itertools.product(divisors, divisors, divisors):
        if devices % (fsdp * tensor * context) or rows % (devices // (tensor * context)):
            continue
        if context > 1 and settings['mesh'].context == 1:  # exchanges heads: only for those who ask for it
            continue
        mesh = dataclasses.replace(
            settings['mesh'],
            data=devices // (fsdp * tensor * context),
            fsdp=fsdp,
            tensor=tensor,
            context=context,
        )
        parts = 1
        while rows % (parts * devices // (tensor * context)) == 0:
            for remat in RECOMPUTED:
                model = dataclasses.replace(settings['model'], remat=remat)
                optimizer = dataclasses.replace(settings['optimizer'], microbatches=parts)
                yield {**settings, 'mesh': mesh, 'model': model, 'optimizer': optimizer}
            parts *= 2


def estimated_seconds(settings: Mapping[str, Any], chip: Chip, devices: int) -> float:
    """Seconds of a step if compute and traffic do not overlap; only good for comparing.

    Parameters are gathered twice and their gradients reduced once over `fsdp` and `context` for each microbatch,
    reduced over `data`, and every layer reduces its activations over `tensor` four times.
    """
    model: ModelConfig = settings['model']
    mesh, data = settings['mesh'], settings['data']
    batch = batch_of(model, data.batch_size, data.feature_lengths)
    compute = model_flops(model, batch.shapes) * RECOMPUTED[model.remat]
    seconds = compute / (devices * chip.peak_tflops * 1e12 / chip.devices)
    width, ring = jax.numpy.dtype(model.dtype).itemsize, lambda size: (size - 1) / size
    held = count_parameters(model) / mesh.tensor
    sent = held * (2 * width + 4) * ring(mesh.fsdp * mesh.context) * settings['optimizer'].microbatches
    sent += 2 * 4 * held / (mesh.fsdp * mesh.context) * ring(mesh.data)
    layers = model.num_encoder_layers + model.num_decoder_layers
    tokens = batch.tokens / (mesh.data * mesh.fsdp * mesh.context)
    sent += 4 * layers * 2 * tokens * model.emb_dim * width * ring(mesh.tensor)
    return seconds + sent / ((chip.link_gbps or 1.0) * 1e9 / chip.devices)


def search(
    settings: Mapping[str, Any], target: Target, tries: int, describe: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compiles the best choices and picks the fastest program that fits.

    Args:
        settings: arguments of `training.trainer.train`.
        target: the devices.
        tries: how many choices are compiled.
        describe: compiles settings and returns the report of `describe_program`.

    Returns:
        The report of the fastest, and a row for each choice that was compiled.

    Raises:
        UserError: no choice fits.
    """
    found = worth_compiling(choices(settings, target), settings, len(target.devices), tries)
    rows, reports = [], []
    for choice in found:
        report = describe(choice.settings)
        seconds = max(report.get('roofline_seconds', {}).values(), default=None)
        rows.append(
            {
                'settings': choice.name,
                'estimated_seconds': choice.seconds,
                'estimated_bytes': choice.bytes,
                'peak_bytes_per_device': report['peak_bytes_per_device'],
                'roofline_seconds': seconds,
                'bound': report.get('bound'),
                'fits': report['fits'],
            }
        )
        reports.append(report)
    fitting = [i for i, row in enumerate(rows) if row['fits']]
    if not fitting:
        why = f'none of the {len(rows)} that were compiled does' if rows else 'not even by estimate'
        raise UserError(f'no mesh, microbatches and remat fit on {target.name}: {why}. Use more chips or fewer rows.')
    best = min(fitting, key=lambda i: rows[i]['roofline_seconds'])
    rows[best]['best'] = True
    return reports[best], rows
