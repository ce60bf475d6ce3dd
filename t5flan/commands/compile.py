"""`t5flan compile`: memory, FLOPs and traffic of a training step, or of generation, on chips that need not be there."""

import argparse
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import COUNT, Command, Flag
from t5flan.commands.flags import JSON, read_decoding, with_own_teacher
from t5flan.commands.train import take_from_checkpoint
from t5flan.errors import UsageError, UserError
from t5flan.files import write_json

if TYPE_CHECKING:
    from t5flan.config.settings import Settings

_STEPS = 10_000
"""Steps of the run where gin sets none; they change the schedule's constants only."""


def run(arguments: argparse.Namespace) -> None:
    """Compiles the training step of a run, or generation with its model, and prints what it takes."""
    from t5flan import configurables

    if arguments.decode and arguments.fit:
        raise UsageError('--fit searches the settings of a training step. Remove it, or --decode')

    settings = configurables.parse(arguments.gin_file, arguments.gin)
    values = read_settings(settings)

    from t5flan.compiling.targets import find_target, run_nothing_here

    kind, _, count = arguments.topology.partition(':')
    run_nothing_here(int(count) if kind == 'cpu' and count.isdigit() and int(count) < 1000 else 1)
    target = find_target(arguments.topology, arguments.slices)

    from t5flan.compiling.decoding import describe_decoding
    from t5flan.compiling.report import describe_program
    from t5flan.compiling.search import search
    from t5flan.compiling.step import compile_step
    from t5flan.compiling.terminal import print_report, print_search

    describe = lambda given: describe_program(compile_step(given, target.devices), target)
    if arguments.decode:
        report = describe_decoding(values, read_decoding(settings, arguments, 'compile'), target)
    elif arguments.fit:
        report, rows = search(values, target, arguments.tries, describe)
        print_search(rows)
        report['search'] = rows
    else:
        report = describe(values)
    print_report(report, arguments.parameters)
    if arguments.json:
        write_json(arguments.json, report)
    if not report['fits']:
        raise UserError(_does_not_fit(report, values))


def read_settings(settings: 'Settings') -> dict[str, Any]:
    """The settings that `t5flan train` would use; names of data, which change no program, may be missing.

    Raises:
        UserError: a setting is missing or wrong.
    """
    from t5flan import configurables
    from t5flan.data.config import DataConfig
    from t5flan.training.config import RunConfig

    settings.set_defaults(DataConfig, {'mixture': '-', 'vocabulary': 'bytes'}, 't5flan compile')
    settings.set_defaults(RunConfig, {'steps': _STEPS}, 't5flan compile')
    take_from_checkpoint(settings, '')
    values = configurables.training_settings(settings)
    return values | {'loss': with_own_teacher(values['loss'])}


def _does_not_fit(report: dict[str, Any], values: dict[str, Any]) -> str:
    from t5flan.compiling.fitting import changes_that_fit

    problem = f'the step does not fit on {report["topology"]}'
    if 'phase' in report:
        fix = 'Set a smaller Decoding.batch_size or Decoding.max_new_tokens, or more MeshConfig.fsdp or tensor'
        return f'{problem}: {_needed(report)}. {fix}.'
    if report['peak_bytes_per_device'] is None:
        return f'{problem}. Set a smaller DataConfig.batch_size, ModelConfig.remat="full" or more MeshConfig.fsdp.'
    problem += f': {_needed(report)}'
    found = changes_that_fit(values, report['devices'], _needed_bytes(report), report['limit_bytes'])
    if not found:
        return f'{problem}. By estimate no remat, microbatches or MeshConfig.fsdp makes it fit: use more chips.'
    return f'{problem}. By estimate it fits with {" or ".join(found)}.'


def _needed(report: dict[str, Any]) -> str:
    from t5flan.compiling.terminal import gib

    return f'it needs {gib(_needed_bytes(report))} of {gib(report["limit_bytes"])} on each device'


def _needed_bytes(report: dict[str, Any]) -> int:
    """What a device would need; of a step that the compiler refused, only the peak is known."""
    return report.get('allocated_bytes', report['peak_bytes_per_device'])


COMMAND = Command(
    'compile',
    "compiles a run's training step, or generation, for chips that need not be there: memory, FLOPs, traffic, time",
    run,
    gin=True,
    example='t5flan compile --topology=v5e:4x4 --gin_file=models/t5_1_1_small --gin_file=runs/pretrain',
    flags=(
        Flag(
            '--topology',
            'what to compile for: v4, v5e, v5p, v6e or tpu7x and the chips along each axis (v5p:4x4x4), h100 or a100 '
            'and their number, or cpu:8, simulated devices',
            'CHIP:SHAPE',
            required=True,
        ),
        Flag('--slices', 'number of such TPU slices (default: 1)', 'N', COUNT, 1),
        Flag(
            '--decode',
            'compile generation instead: reading a batch of prompts, and one more token in each row',
            type=bool,
        ),
        Flag('--fit', 'search mesh, microbatches and remat for the fastest step that fits', type=bool),
        Flag('--tries', 'with --fit: how many choices are compiled (default: 4)', 'N', COUNT, 4),
        Flag('--parameters', 'also print the sharding of every parameter', type=bool),
        JSON,
    ),
)
