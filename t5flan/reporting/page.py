"""Writes a self-contained HTML page of sections: text, tables, curves, sample predictions.

    write_report('report.html', 'Quickstart', [
        Text('Before and after', 'The same questions, before and after finetuning.'),
        Table('', ['task', 'before', 'after'], [['add', 1.0, 97.5]]),
        Curves('Training', [Panel('Loss', {'train': ([1, 2, 3], [3.0, 2.5, 2.25])}, y_label='nats per token')]),
    ])

The page needs neither network nor other files: plots are embedded SVG, drawn for a light and for a dark color scheme.
"""

import base64
import dataclasses
import html
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5flan.files import open_whole, to_path, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 800
"""Curves with more points are thinned, to keep the page of a long run small."""

COLORS = ('#3b78d8', '#e0752d', '#2f9e63', '#b558c9', '#d64550', '#8a8f98')


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines; `code` shows the body verbatim, in a fixed-width font."""

    title: str
    body: str
    code: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells: numbers are right-aligned, floats have `digits` decimals, None is an empty cell.

    If `total`, the last row is a sum or mean of the others and stands out.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ''
    digits: int = 1
    total: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot: each series is (x values, y values); points that are not finite are skipped."""

    title: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x_label: str = 'step'
    y_label: str = ''
    log_y: bool = False


@dataclasses.dataclass(frozen=True)
class Curves:
    """Panels in a grid, two per row."""

    title: str
    panels: Sequence[Panel]
    caption: str = ''


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example: the input, the predictions by model, and the target if known."""

    input: str
    predictions: Mapping[str, str]
    target: str | None = None
    correct: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    label: str = ''


@dataclasses.dataclass(frozen=True)
class Samples:
    """A list of examples."""

    title: str
    samples: Sequence[Sample]
    caption: str = ''


Section = Text | Table | Curves | Samples


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section], subtitle: str = '') -> Path:
    """Writes the page atomically and returns its path.

    Skips sections without content, such as a table without rows or curves without points.
    """
    path = to_path(path)
    parts = [_RENDER[type(section)](section) for section in sections if not _is_empty(section)]
    page = _PAGE.format(
        title=html.escape(title),
        subtitle=f'<p class="subtitle">{html.escape(subtitle)}</p>' if subtitle else '',
        style=_STYLE,
        body='\n'.join(parts),
    )
    write_whole(path, page)
    return path


def save_picture(section: Curves, path: str | os.PathLike[str]) -> Path:
    """Saves the plots of a section as .png, .svg or .pdf and returns its path."""
    path = to_path(path)
    figure = _draw(section, dark=False)
    with open_whole(path, 'wb') as file:
        figure.savefig(file, format=path.suffix[1:], dpi=160, facecolor='white', bbox_inches='tight')
    return path


def _is_empty(section: Section) -> bool:
    match section:
        case Text():
            return not section.body.strip()
        case Table():
            return not section.rows
        case Curves():
            return not any(_points(*xy)[0] for panel in section.panels for xy in panel.series.values())
        case Samples():
            return not section.samples


# -- Sections as HTML -------------------------------------------------------------------------------------------------


def _text(section: Text) -> str:
    if section.code:
        body = f'<pre>{html.escape(section.body.strip())}</pre>'
    else:
        body = '\n'.join(f'<p>{html.escape(paragraph.strip())}</p>' for paragraph in section.body.split('\n\n'))
    return _section(section.title, body)


def _table(section: Table) -> str:
    numeric = [any(_is_number(row[i]) for row in section.rows if i < len(row)) for i in range(len(section.columns))]

    def cells(values: Sequence[Any], tag: str) -> str:
        attributes = [' class=number' if is_number else '' for is_number in numeric]
        pairs = zip(attributes, values)
        return ''.join(f'<{tag}{attribute}>{_cell(value, section.digits)}</{tag}>' for attribute, value in pairs)

    rows = [f'<tr>{cells(row, "td")}</tr>' for row in section.rows]
    if section.total:
        rows[-1] = rows[-1].replace('<tr>', '<tr class="total">', 1)
    head = f'<thead><tr>{cells(section.columns, "th")}</tr></thead>'
    table = f'<table>{head}<tbody>{"".join(rows)}</tbody></table>'
    return _section(section.title, f'<div class="scroll">{table}</div>', section.caption)


def _curves(section: Curves) -> str:
    light, dark = (_svg_uri(_draw(section, dark)) for dark in (False, True))
    body = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(section.title or "curves")}"></picture>'
    )
    return _section(section.title, body, section.caption)


def _samples(section: Samples) -> str:
    blocks = []
    for sample in section.samples:
        rows = [] if sample.target is None else [_answer('target', sample.target, '')]
        for name, prediction in sample.predictions.items():
            verdict = {True: 'right', False: 'wrong', None: ''}[sample.correct.get(name)]
            rows.append(_answer(name, prediction, verdict))
        label = f'<div class="label">{html.escape(sample.label)}</div>' if sample.label else ''
        blocks.append(
            f'<article>{label}<div class="input">{html.escape(sample.input)}</div><dl>{"".join(rows)}</dl></article>'
        )
    return _section(section.title, '\n'.join(blocks), section.caption)


def _answer(name: str, text: str, verdict: str) -> str:
    mark = {'right': '✓ ', 'wrong': '✗ ', '': ''}[verdict]
    return f'<dt>{html.escape(name)}</dt><dd class="{verdict}">{mark}{html.escape(text) or "<i>(nothing)</i>"}</dd>'


def _section(title: str, body: str, caption: str = '') -> str:
    heading = f'<h2>{html.escape(title)}</h2>' if title else ''
    note = f'<p class="caption">{html.escape(caption)}</p>' if caption else ''
    return f'<section>{heading}\n{body}\n{note}</section>'


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return ''
    if isinstance(value, float):
        return f'{value:,.{digits}f}' if math.isfinite(value) else str(value)
    if _is_number(value):
        return f'{value:,}'
    return html.escape(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_RENDER: dict[type, Callable[[Any], str]]
_RENDER = {Text: _text, Table: _table, Curves: _curves, Samples: _samples}


# -- Plots ------------------------------------------------------------------------------------------------------------


def _draw(section: Curves, dark: bool) -> 'Figure':
    """Draws without pyplot, which keeps global state and needs a display."""
    import matplotlib

    ink, grid = ('#d5d9e0', '#3a3f4a') if dark else ('#2b2f36', '#e3e5ea')
    style: Any = {  # Any: matplotlib's type is a dict with a Literal of every rcParam as its key
        'axes.axisbelow': True,
        'axes.edgecolor': grid,
        'axes.facecolor': 'none',
        'axes.grid': True,
        'axes.labelcolor': ink,
        'axes.spines.right': False,
        'axes.spines.top': False,
        'figure.facecolor': 'none',
        'font.family': 'sans-serif',
        'font.size': 10,
        'grid.color': grid,
        'legend.frameon': False,
        'svg.fonttype': 'none',  # text, not outlines
        'text.color': ink,
        'xtick.color': ink,
        'ytick.color': ink,
    }
    with matplotlib.rc_context(style):
        return _draw_panels(section.panels)


def _draw_panels(all_panels: Sequence[Panel]) -> 'Figure':
    from matplotlib.figure import Figure

    panels = [panel for panel in all_panels if any(_points(*xy)[0] for xy in panel.series.values())]
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.9 * across if across > 1 else 7.5, 3.1 * down), layout='constrained')
    axes = figure.subplots(down, across, squeeze=False).flat
    for panel, axis in zip(panels, axes):
        axis.set_title(panel.title, fontsize=11, loc='left', fontweight='bold')
        for i, (name, xy) in enumerate(panel.series.items()):
            x, y = _points(*xy, positive=panel.log_y)
            marker = 'o' if len(x) < 25 else None
            axis.plot(x, y, color=COLORS[i % len(COLORS)], linewidth=1.6, label=name, marker=marker, markersize=3)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        if panel.log_y:
            axis.set_yscale('log')
        if len(panel.series) > 1:
            axis.legend(fontsize=9)
    for axis in axes:  # the rest of the grid, without panels
        axis.set_axis_off()
    return figure


def _points(x: Sequence[float], y: Sequence[float], positive: bool = False) -> tuple[list[float], list[float]]:
    """The finite points, thinned to about MAX_POINTS but always with the last one."""
    pairs = [
        (float(a), float(b))
        for a, b in zip(x, y)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b) and (b > 0 or not positive)
    ]
    if len(pairs) > MAX_POINTS:
        stride = -(-len(pairs) // MAX_POINTS)
        pairs = pairs[::stride] + ([pairs[-1]] if (len(pairs) - 1) % stride else [])
    return [a for a, _ in pairs], [b for _, b in pairs]


def _svg_uri(figure: 'Figure') -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None}, transparent=True)
    return 'data:image/svg+xml;base64,' + base64.b64encode(buffer.getvalue()).decode()


_STYLE = """
:root { --ink: #1d2026; --soft: #666c77; --line: #e3e5ea; --paper: #ffffff; --panel: #f6f7f9;
  --good: #1f8a4c; --bad: #c23b46; --accent: #3b78d8; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3ea; --soft: #979eab; --line: #30343d; --paper: #16181d;
  --panel: #1e2128; --good: #56c586; --bad: #f0808a; --accent: #7aa7f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; } .subtitle { color: var(--soft); margin: .3rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; } p { margin: .6rem 0; max-width: 46rem; }
.caption { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; min-width: 55%; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .8rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody tr:hover { background: var(--panel); } tr.total td { font-weight: 650; border-top: 2px solid var(--line); }
.number { text-align: right; }
img { max-width: 100%; height: auto; }
article { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .75rem 1rem; margin: .7rem 0; }
.label { color: var(--accent); font-size: .8rem; font-weight: 600; margin-bottom: .25rem; }
.input { white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: .55rem 0 0; font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.right { color: var(--good); } .wrong { color: var(--bad); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; font: .83rem/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
<header><h1>{title}</h1>{subtitle}</header>
{body}
</body>
</html>
"""
