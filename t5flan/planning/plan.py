"""From a budget or a target to model size, tokens, steps, memory, chip-hours and price."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.planning.chips import Chip
from t5flan.planning.cost import GIB, Batch, count_parameters, flops_per_token, memory_of
from t5flan.planning.laws import CHINCHILLA_LOSS, FLOPS_PER_PARAMETER, Frontier, LossLaw
from t5flan.training.config import OptimizerConfig

NEAR = 3.0
"""Models within this factor of an optimal size are shown."""
_MOST_SHAPES = 8


@dataclasses.dataclass(frozen=True)
class Machine:
    """What trains: chips of a kind, and how well they are used.

    Attributes:
        chip: the kind.
        count: how many.
        mfu: the assumed model FLOPs over those of the chips at their peak.
        price: of a chip-hour, in any currency; None if unknown.
    """

    chip: Chip
    count: int
    mfu: float
    price: float | None = None

    @property
    def devices(self) -> int:
        """JAX devices of all chips."""
        return self.count * self.chip.devices

    @property
    def flops_per_hour(self) -> float:
        """Model FLOPs of all chips in an hour."""
        return self.count * self.chip.peak_tflops * 1e12 * self.mfu * 3600

    def cost(self, flops: float) -> dict[str, float]:
        """Hours, chip-hours, and price if it is known, of so many model FLOPs."""
        hours = flops / self.flops_per_hour
        found = {'hours': hours, 'chip_hours': hours * self.count}
        return found if self.price is None else found | {'price': found['chip_hours'] * self.price}


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is asked for: `flops` of a budget, or `parameters`, `tokens` or both of a target."""

    flops: float | None = None
    parameters: float | None = None
    tokens: float | None = None

    def optimum(self, law: Frontier) -> tuple[float, float]:
        """(parameters, tokens) by a law; what the target fixes stays."""
        if self.flops is not None:
            parameters = law.parameters(self.flops)
            return parameters, self.flops / (FLOPS_PER_PARAMETER * parameters)
        if self.parameters is not None:
            return self.parameters, self.tokens or law.tokens(self.parameters)
        assert self.tokens is not None
        return law.parameters(law.flops_of_tokens(self.tokens)), self.tokens


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model that could be trained: its name and configuration, and the batch of a step."""

    name: str
    config: ModelConfig
    batch: Batch


def by_laws(goal: Goal, laws: Mapping[str, Frontier], loss: LossLaw = CHINCHILLA_LOSS) -> list[dict[str, Any]]:
    """What each law says: parameters, tokens, FLOPs (6 N D), expected loss, and whether the law extrapolates.

    A target of both parameters and tokens also has `optimal_parameters` and `optimal_tokens` for the same FLOPs.
    """
    found = []
    for name, law in laws.items():
        parameters, tokens = goal.optimum(law)
        flops = FLOPS_PER_PARAMETER * parameters * tokens
        row: dict[str, Any] = {'law': name, 'parameters': parameters, 'tokens': tokens, 'flops': flops}
        if goal.parameters is not None and goal.tokens is not None:
            row['optimal_parameters'] = law.parameters(flops)
            row['optimal_tokens'] = flops / (FLOPS_PER_PARAMETER * row['optimal_parameters'])
        row['loss'] = loss.loss(parameters, tokens)
        row['extrapolates'] = not law.studied[0] <= flops <= law.studied[1]
        found.append(row | {'exponent': law.exponent, 'source': law.source})
    return found


def choose_shapes(shapes: Iterable[Shape], sizes: Iterable[float]) -> list[Shape]:
    """The models near one of the optimal sizes, by size: within a factor of 3, or else the nearest one."""
    counted = sorted((float(count_parameters(shape.config)), shape.name, shape) for shape in shapes)
    sizes = list(sizes)
    distance = lambda parameters: min(abs(math.log(parameters / size)) for size in sizes)
    near = sorted(counted, key=lambda one: (distance(one[0]), one[1]))
    chosen = [one for one in near if distance(one[0]) <= math.log(NEAR)][:_MOST_SHAPES] or near[:1]
    return [shape for _, _, shape in sorted(chosen, key=lambda one: one[:2])]


def cost_of_shape(
    shape: Shape,
    goal: Goal,
    law: Frontier,
    machine: Machine | None,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    finetune_tokens: float,
    loss: LossLaw = CHINCHILLA_LOSS,
    teacher: ModelConfig | None = None,
) -> dict[str, Any]:
    """What training a model takes, by the project's own count of FLOPs.

    The tokens are those that the budget pays for, those of the target, or those that `law` finds optimal for the model.
    Without `memory_gib_per_device`, `problem` says why the model cannot be laid out on the mesh.
    """
    parameters, per_token = count_parameters(shape.config), flops_per_token(shape.config, shape.batch)
    tokens = goal.flops / per_token if goal.flops is not None else goal.tokens or law.tokens(parameters)
    row: dict[str, Any] = {
        'model': shape.name,
        'parameters': parameters,
        'tokens': tokens,
        'tokens_per_parameter': tokens / parameters,
        'steps': math.ceil(tokens / shape.batch.tokens),
        'tokens_per_step': shape.batch.tokens,
        'flops': tokens * per_token,
        'flops_over_6nd': per_token / (FLOPS_PER_PARAMETER * parameters),
        'loss': loss.loss(parameters, tokens),
    }
    if machine is None:
        return row
    row |= machine.cost(row['flops'])
    try:
        memory = memory_of(shape.config, shape.batch, optimizer, mesh, machine.devices, teacher)
        limit = machine.chip.memory_gib * GIB / machine.chip.devices
        row |= {'memory_gib_per_device': memory.gib(), 'fits': memory.total <= limit}
    except UserError as error:
        row |= {'fits': False, 'problem': str(error)}
    finetune = {'tokens': finetune_tokens, 'flops': finetune_tokens * per_token}
    return row | {'finetuning': finetune | machine.cost(finetune['flops'])}


def make_plan(
    goal: Goal,
    laws: Mapping[str, Frontier],
    main: str,
    shapes: Iterable[Shape],
    machine: Machine | None,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    finetune_tokens: float,
    *,
    all_shapes: bool = False,
    loss: LossLaw = CHINCHILLA_LOSS,
    teacher: ModelConfig | None = None,
) -> dict[str, Any]:
    """The whole plan, as JSON.

    Args:
        goal: budget or target.
        laws: the laws to compare.
        main: the law that chooses between models, and their tokens where the goal does not.
        shapes: models to choose from.
        machine: the chips; None leaves out time, memory and price.
        optimizer, mesh: settings of the run, for its memory.
        finetune_tokens: tokens of finetuning.
        all_shapes: show all `shapes`, not only those near an optimal size.
        loss: the law of the expected loss.
        teacher: the model that LossConfig.teacher names, for the memory of the run.

    Raises:
        UserError: there are no models.
    """
    rows = by_laws(goal, laws, loss)
    best = next(row for row in rows if row['law'] == main)['parameters']
    shapes = sorted(shapes, key=lambda shape: count_parameters(shape.config))
    if not shapes:
        raise UserError('there is no model to plan with. Set --models=NAME or --gin_file=models/NAME')
    chosen = shapes if all_shapes else choose_shapes(shapes, [row['parameters'] for row in rows])
    costs = [
        cost_of_shape(shape, goal, laws[main], machine, optimizer, mesh, finetune_tokens, loss, teacher)
        for shape in chosen
    ]
    nearest = min(costs, key=lambda row: abs(math.log(row['parameters'] / best)))
    for row in costs:
        row['nearest'] = row is nearest
    budget = {} if machine is None else _machine(machine)
    return {'goal': dataclasses.asdict(goal), **budget, 'law': main, 'laws': rows, 'models': costs}


def _machine(machine: Machine) -> dict[str, Any]:
    given = {'chip': machine.chip.name, 'chips': machine.count, 'mfu': machine.mfu}
    given |= {'peak_tflops_per_chip': machine.chip.peak_tflops, 'memory_gib_per_chip': machine.chip.memory_gib}
    return {'machine': given | ({} if machine.price is None else {'price_per_chip_hour': machine.price})}
