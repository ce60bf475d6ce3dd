"""What `t5flan compile` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5flan.planning.terminal import print_rows, short


def gib(value: float | None) -> str:
    """Bytes with a unit."""
    if value is None:
        return 'unknown'
    for unit, letter in ((2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB')):
        if value >= unit:
            return f'{value / unit:.2f} {letter}'
    return f'{value:.0f} B'


_PHASES = {'prompts': 'reading the prompts', 'tokens': 'one more token in each row'}


def print_report(report: Mapping[str, Any], all_parameters: bool = False) -> None:
    """Prints memory, work, traffic and the least time of a compiled step.

    Args:
        report: of `describe_program`.
        all_parameters: also print the sharding of every parameter.
    """
    if 'phase' in report:
        if 'prompts' in report:
            print_report(report['prompts'])
            print()
        what = f'{report["rows"]} prompts of {report["length"]} tokens, {report["new_tokens"]} new tokens'
        print(f'generation, {what}: {_PHASES[report["phase"]]}')
    mesh = ' x '.join(f'{axis}={size}' for axis, size in report['mesh'].items() if size > 1) or 'one device'
    slices = f'{report["slices"]} slices of ' if report['slices'] > 1 else ''
    across = ', '.join(f'{axis} over {count}' for axis, count in report['across_slices'].items())
    print(f'{slices}{report["topology"]}: {mesh}{" (between slices: " + across + ")" if across else ""}')
    cells = [
        [name.replace('_', ' '), gib(report[key])]
        for name, key in (
            ('peak', 'peak_bytes_per_device'),
            ('allocated', 'allocated_bytes'),
            ('limit', 'limit_bytes'),
            ('arguments', 'argument_bytes'),
            ('parameters', 'parameter_bytes'),
            ('optimizer state', 'optimizer_bytes'),
            ('teacher', 'teacher_bytes'),
            ('keys and values', 'cache_bytes'),
            ('activations and other temporaries', 'activation_bytes'),
        )
        if report.get(key) is not None
    ]
    print_rows('memory of each device', ['', 'bytes'], cells)
    if 'executed_flops' in report:
        _print_work(report)
    if all_parameters:
        rows = [
            [name, 'x'.join(map(str, one['shape'])), ', '.join(axis or '-' for axis in one['sharding'])]
            + [gib(one['bytes_per_device'])]
            for name, one in report['parameters'].items()
        ]
        print_rows('parameters', ['', 'shape', 'sharding', 'of each device'], rows)
    verdict = 'fits' if report['fits'] else 'does not fit'
    print(f'{verdict}; compiled in {report["compile_seconds"]:.0f} s')
    if report.get('allocations'):
        print('largest buffers:', *report['allocations'], sep='\n  ')


def _print_work(report: Mapping[str, Any]) -> None:
    rows = [
        [kind, axes, gib(size)]
        for kind, by_axes in report['collective_bytes'].items()
        for axes, size in sorted(by_axes.items())
    ]
    if rows:
        print_rows('collectives of each device in a step', ['', 'mesh axes', 'bytes'], rows)
    _print_buffers(report['largest_buffers'])
    model, ratio = report['model_flops'], report['executed_over_model_flops']
    print(f'model FLOPs {short(model)} in a step; executed FLOPs are {ratio:.2f} times those')
    if report['bound'] is not None:
        bounds = ', '.join(
            f'{name} {1e3 * value:.3g} ms' for name, value in report['roofline_seconds'].items() if value
        )
        print(f"at least, by the chip's data sheet: {bounds}")
        print(f'bound by {report["bound"]}; at most {100 * report["mfu"]:.1f} % of the peak')
    if report.get('tokens_per_second_at_most'):
        print(f'at most {short(report["tokens_per_second_at_most"])} tokens/s')


def _print_buffers(buffers: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [gib(row['bytes']), f'{row["count"]} x {row["shape"]}', row['operation'].removeprefix('jit(train_step)/')]
        for row in buffers
    ]
    if rows:
        print_rows('largest buffers of each device besides arguments, at the peak', ['bytes', '', ''], rows)


def print_search(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the settings that a search compiled."""
    milliseconds = lambda value: '-' if value is None else f'{1e3 * value:.3g}'
    cells = [
        ['*' if row.get('best') else '', row['settings'].replace('--gin.', '').replace('Config.', '.')]
        + [milliseconds(row['estimated_seconds']), milliseconds(row['roofline_seconds']), row['bound'] or '-']
        + [gib(row['estimated_bytes']), gib(row['peak_bytes_per_device']) + ('' if row['fits'] else ' (!)')]
        for row in rows
    ]
    columns = ['', 'settings', 'estimate, ms', 'program, ms', 'bound', 'estimate', 'peak']
    print_rows('compiled, best by estimate first; * is the fastest program that fits, (!) does not fit', columns, cells)
    print('to run it:', next(row['settings'] for row in rows if row.get('best')))
