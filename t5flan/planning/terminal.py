"""What `t5flan plan` prints: tables of a plan and of a fit."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_UNITS = ((1e15, 'Q'), (1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'K'))


def short(value: float) -> str:
    """A count with a unit: 1.4e12 -> '1.40T'."""
    for unit, letter in _UNITS:
        if value >= unit:
            return f'{value / unit:.3g}{letter}'
    return f'{value:.3g}'


def print_plan(plan: Mapping[str, Any]) -> None:
    """Prints what the laws say, and what each model takes."""
    flops = plan['goal']['flops']
    rows = plan['laws']
    title = f'by the scaling laws{"" if flops is None else f", for {flops:.3g} FLOPs"}'
    compares = 'optimal_parameters' in rows[0]
    columns = ['law', 'parameters', 'tokens', 'tokens/parameter', 'FLOPs (6ND)', 'loss', '']
    cells = []
    for row in rows:
        best = f'optimal: {short(row["optimal_parameters"])}, {short(row["optimal_tokens"])}' if compares else ''
        note = ', '.join(filter(None, [best, 'extrapolates' if row['extrapolates'] else '']))
        cell = [row['law'], short(row['parameters']), short(row['tokens']), f'{row["tokens"] / row["parameters"]:.3g}']
        cells.append([*cell, f'{row["flops"]:.3g}', f'{row["loss"]:.3f}', note])
    print_rows(title, columns, cells)
    _print_models(plan)


def _print_models(plan: Mapping[str, Any]) -> None:
    machine = plan.get('machine')
    columns = ['', 'model', 'parameters', 'tokens', 'steps', 'FLOPs', 'loss']
    has_price = machine is not None and 'price_per_chip_hour' in machine
    if machine is not None:
        columns += ['GiB/device', 'hours', 'chip-hours', *(['price'] if has_price else []), 'finetuning']
    cells = []
    for row in plan['models']:
        cell = ['*' if row['nearest'] else '', row['model'], short(row['parameters']), short(row['tokens'])]
        cell += [f'{row["steps"]:,}', f'{row["flops"]:.3g}', f'{row["loss"]:.3f}']
        if machine is not None:
            gib = row.get('memory_gib_per_device', {}).get('total')
            cell += [
                '-' if gib is None else f'{gib:.1f}{"" if row["fits"] else " (!)"}',
                f'{row["hours"]:,.1f}',
                f'{row["chip_hours"]:,.0f}',
            ]
            cell += [f'{row["price"]:,.0f}'] if has_price else []
            cell += [f'{row["finetuning"]["chip_hours"]:,.1f}']
        cells.append(cell)
    where = ''
    if machine is not None:
        where = f' on {machine["chips"]} x {machine["chip"]} at {100 * machine["mfu"]:g} % of their peak'
    print_rows(f'models{where}, by their own FLOPs', columns, cells)
    lines = [f'* nearest to the optimal size by {plan["law"]}; tokens are inputs and targets']
    if machine is not None:
        finetuned = short(plan['models'][0]['finetuning']['tokens'])
        lines.append(f'finetuning: chip-hours for {finetuned} tokens; (!) does not fit the memory of the chip')
    lines += [f'{row["model"]}: {row["problem"]}' for row in plan['models'] if 'problem' in row]
    print(*lines, sep='\n')


def print_fit(found: Mapping[str, Any]) -> None:
    """Prints a fit: its constants with their intervals, the parabolas, and what it predicts."""
    cells = [[name, f'{value["value"]:.4g}', _interval(value)] for name, value in found['constants'].items()]
    print(f'L = E + A / N^alpha + B / D^beta, fitted to {found["runs"]} runs; off by {100 * found["error"]:.2f} %')
    print_rows('', ['', 'value', '90 % interval'], cells)
    if found['budgets']:
        rows = [
            [f'{one["flops"]:.3g}', str(one['runs']), short(one['parameters']) if one['parameters'] else 'at the edge']
            for one in found['budgets']
        ]
        print_rows('parabolas at equal FLOPs', ['FLOPs', 'runs', 'optimal parameters'], rows)
    if found['isoflop_exponent'] is not None:
        print(f'N ~ C^{found["isoflop_exponent"]:.3f} through their minima')
    rows = [
        [
            f'{one["flops"]:.3g}',
            *(short(one[name]['value']) + ' ' + _interval(one[name], short) for name in ('parameters', 'tokens')),
            f'{one["loss"]["value"]:.3f} {_interval(one["loss"])}',
        ]
        for one in found['predictions']
    ]
    print_rows('predictions (FLOPs as 6ND)', ['FLOPs', 'parameters', 'tokens', 'loss'], rows)
    if (one := found['left_out']) is not None:
        predicted = f'loss {one["predicted"]:.4f} predicted from the others, {one["measured"]:.4f} measured'
        print(f'check: {one["run"]}, the run with the most FLOPs: {predicted}')


def _interval(value: Mapping[str, float], form: Any = lambda x: f'{x:.4g}') -> str:
    return f'({form(value["low"])} to {form(value["high"])})'


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify='left')
    for column in columns:
        is_text = column in ('', 'law', 'model')
        table.add_column(column, justify='left' if is_text else 'right', overflow='fold')
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
