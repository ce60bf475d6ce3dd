"""`t5flan plan`: what to train with a budget, what a target costs, and what finished runs predict."""

import argparse
import fnmatch
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import JSON, with_own_teacher
from t5flan.errors import UsageError, did_you_mean
from t5flan.files import write_json

if TYPE_CHECKING:
    from t5flan.config.settings import Settings
    from t5flan.models.config import ModelConfig
    from t5flan.planning.plan import Goal, Machine, Shape

_UNITS = {'K': 1e3, 'M': 1e6, 'B': 1e9, 'T': 1e12}
_ROWS = 128
"""Rows of a batch, unless gin sets them: T5's, or the next multiple of the devices."""
_LENGTHS = {'encoder_decoder': {'inputs': 512, 'targets': 114}, 'decoder_only': {'targets': 2048}}


def count(text: str) -> float:
    """A number above 0: '3e9', '3B', '1.4T'."""
    unit = _UNITS.get(text[-1:].upper(), 1.0)
    try:
        value = float(text[:-1] if unit != 1.0 else text) * unit
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0, such as 3e9, 3B or 1.4T')
    return value


def run(arguments: argparse.Namespace) -> None:
    """Prints a plan, or fits the laws to finished runs."""
    _check(arguments)
    from t5flan import configurables

    settings = configurables.parse(arguments.gin_file, arguments.gin)
    found = _fit(arguments) if arguments.fit else _plan(arguments, settings)
    if arguments.json:
        write_json(arguments.json, found)


def _check(arguments: argparse.Namespace) -> None:
    target = [name for name in ('parameters', 'tokens') if getattr(arguments, name) is not None]
    if arguments.fit:
        for name in ('parameters', 'tokens', 'models', 'law'):
            if getattr(arguments, name) is not None:
                raise UsageError(f'--{name} is not of --fit, which finds its own law. Remove it')
        if arguments.resamples < 20:
            raise UsageError(f'--resamples={arguments.resamples}, expected 20 or more for an interval')
    elif arguments.hours is not None and target:
        raise UsageError(f'--hours is a budget, --{target[0]} a target. Set one of them')
    elif arguments.hours is None and not target:
        raise UsageError('set a budget (--chip=v5e --chips=16 --hours=100), a target (--parameters, --tokens) or --fit')
    if arguments.hours is not None and arguments.chip is None:
        raise UsageError('--hours needs --chip=KIND and --chips=N')
    if arguments.chip is None and arguments.price is not None:
        raise UsageError('--price needs --chip=KIND and --chips=N')
    for name, value in (('chips', arguments.chips), ('mfu', arguments.mfu)):
        if value <= 0 or (name == 'mfu' and value > 1):
            expected = 'a number above 0 and at most 1' if name == 'mfu' else '1 or more'
            raise UsageError(f'--{name}={value:g}, expected {expected}')
    if arguments.plot and Path(arguments.plot).suffix not in ('.png', '.svg', '.pdf'):
        raise UsageError(f'--plot={arguments.plot}, expected a file that ends in .png, .svg or .pdf')


def _machine(arguments: argparse.Namespace) -> 'Machine | None':
    from t5flan.planning.chips import find_chip
    from t5flan.planning.plan import Machine

    if arguments.chip is None:
        return None
    chip = find_chip(arguments.chip, arguments.peak_tflops, arguments.memory_gib)
    return Machine(chip, arguments.chips, arguments.mfu, arguments.price)


def _goal(arguments: argparse.Namespace, machine: 'Machine | None') -> 'Goal':
    from t5flan.planning.plan import Goal

    if arguments.hours is not None:
        assert machine is not None
        return Goal(flops=machine.flops_per_hour * arguments.hours)
    return Goal(parameters=arguments.parameters, tokens=arguments.tokens)


def _plan(arguments: argparse.Namespace, settings: 'Settings') -> dict[str, Any]:
    from t5flan.mesh import MeshConfig
    from t5flan.planning.laws import LAWS, find_law
    from t5flan.planning.plan import make_plan
    from t5flan.planning.terminal import print_plan
    from t5flan.training.config import OptimizerConfig

    main = arguments.law or 'chinchilla1'
    find_law(main)
    machine = _machine(arguments)
    settings.set_defaults(MeshConfig, {'data': 1, 'fsdp': -1}, 't5flan plan')
    mesh = settings.read(MeshConfig)
    plan = make_plan(
        _goal(arguments, machine),
        LAWS,
        main,
        _shapes(arguments, settings, 1 if machine is None else machine.devices),
        machine,
        settings.read(OptimizerConfig),
        mesh,
        arguments.finetune_tokens,
        all_shapes=arguments.models is not None or bool(arguments.gin_file),
        teacher=_teacher(settings),
    )
    print_plan(plan)
    if arguments.plot:
        from t5flan.planning.picture import draw_plan

        draw_plan(arguments.plot, plan, LAWS)
    return plan


def _teacher(settings: 'Settings') -> 'ModelConfig | None':
    """The model that LossConfig.teacher names."""
    from t5flan.training.config import LossConfig

    loss = with_own_teacher(settings.read(LossConfig))
    if loss.teacher is None:
        return None
    from t5flan.training.checkpoints import read_description

    return read_description(loss.teacher).model


def _shapes(arguments: argparse.Namespace, settings: 'Settings', devices: int) -> list['Shape']:
    """The model of the gin files, those of --models, or all of gin/models; with the batch of the settings."""
    from t5flan import configurables
    from t5flan.config.gin_files import packaged_files
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.planning.cost import batch_of
    from t5flan.planning.plan import Shape

    if settings.binds(ModelConfig, 'architecture'):
        if arguments.models:
            raise UsageError('--models and a model in --gin_file both choose models. Remove one of them')
        configs = {Path(arguments.gin_file[0]).stem: settings.read(ModelConfig, 'plan')}
    else:
        known = [Path(name).stem for name in packaged_files() if name.startswith('models/')]
        chosen = fnmatch.filter(known, arguments.models or '*')
        if not chosen:
            hint = did_you_mean(arguments.models, known)
            raise UsageError(f'--models={arguments.models} matches no file of gin/models{hint} (*: all)')
        fields = [one for one in arguments.gin if one.startswith('ModelConfig.')]
        configs = {name: configurables.parse([f'models/{name}'], fields).read(ModelConfig) for name in chosen}
    shapes = []
    for name, config in configs.items():
        required = {'mixture': '-', 'vocabulary': 'bytes', 'batch_size': -(-_ROWS // devices) * devices}
        required |= {'feature_lengths': _LENGTHS[config.architecture]}
        required |= {'format': 'encoder_decoder' if config.architecture == 'encoder_decoder' else 'causal_lm'}
        of_model = configurables.parse(arguments.gin_file, arguments.gin)
        of_model.set_defaults(DataConfig, required, 't5flan plan')
        data = of_model.read(DataConfig, 'plan')
        shapes.append(Shape(name, config, batch_of(config, data.batch_size, data.feature_lengths)))
    return shapes


def _fit(arguments: argparse.Namespace) -> dict[str, Any]:
    from t5flan.planning.fit import fit
    from t5flan.planning.predict import describe_fit
    from t5flan.planning.runs import read_runs
    from t5flan.planning.terminal import print_fit

    points, left_out = read_runs(arguments.fit)
    for line in left_out:
        print(line, file=sys.stderr)
    fitted = fit(points, arguments.resamples)
    budget = _goal(arguments, _machine(arguments)).flops
    found = describe_fit(fitted, [] if budget is None else [budget]) | {'left_out_runs': left_out}
    print_fit(found)
    if arguments.plot:
        from t5flan.planning.picture import draw_fit

        draw_fit(arguments.plot, fitted)
    return found


COMMAND = Command(
    'plan',
    'plans a run by scaling laws: size, tokens, steps, memory, chip-hours; or fits the laws to finished runs',
    run,
    gin=True,
    example='t5flan plan --chip=v5e --chips=16 --hours=100 --price=1.2',
    flags=(
        Flag('--chip', 'kind of chip: v4, v5e, v5p, v6e, tpu7x, a100, h100, h200', 'KIND'),
        Flag('--chips', 'number of chips (default: 1)', 'N', int, 1),
        Flag('--hours', 'budget: hours of training', 'X', count),
        Flag('--mfu', 'assumed share of the peak FLOP/s that the model gets (default: 0.4)', 'X', float, 0.4),
        Flag('--price', 'price of a chip-hour, in any currency', 'X', count),
        Flag('--peak_tflops', "peak dense TFLOP/s of a chip (default: the chip's in bfloat16)", 'X', count),
        Flag('--memory_gib', "memory of a chip, in GiB (default: the chip's)", 'X', count),
        Flag('--parameters', 'target: parameters of the model, e.g. 3B', 'N', count),
        Flag('--tokens', 'target: tokens of training, inputs and targets, e.g. 60B', 'N', count),
        Flag('--law', 'chooses among the models: chinchilla1, chinchilla2, chinchilla3, palm2 (default: chinchilla1)'),
        Flag(
            '--models',
            "models of gin/models to show, e.g. 't5_1_1_*' (default: those near the optimal size; with a model in "
            '--gin_file, that one)',
            'GLOB',
        ),
        Flag('--finetune_tokens', 'tokens of finetuning (default: 1B)', 'N', count, '1B'),
        Flag('--fit', "instead, fit the laws to the finished runs in these workdirs, e.g. 'runs/*'", 'GLOB'),
        Flag('--resamples', 'with --fit: resampled fits behind the intervals (default: 100)', 'N', int, 100),
        Flag('--plot', 'also draw the result into FILE (.png, .svg or .pdf)', 'FILE', writes='file'),
        JSON,
    ),
)
