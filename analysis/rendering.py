"""How a table looks: Markdown, LaTeX (booktabs), CSV and the terminal.

What lives here: the four renderings of one `ResultTable`. What must not: any choice or computation of
what stands in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table as TerminalTable
from rich.text import Text

from analysis.registry import Metric
from analysis.statistics import MIN_SEEDS_FOR_TEST, Interval, PairedDifference
from analysis.tables import SIGNIFICANCE, Cell, Panel, ResultTable, Row
from analysis.text import MINUS, in_unit, interval_text, median_and_range


def number(value: float, metric: Metric, signed: bool = False) -> str:
    """A tracked value in the unit shown, with a true minus; '–' for NaN."""
    return in_unit(value, metric.scale, metric.digits, is_signed=signed)


def score(interval: Interval, metric: Metric) -> str:
    """'74.1 ± 2.1'; without half width where there is none."""
    mean = number(interval.mean, metric)
    return mean if math.isnan(interval.half_width) else f"{mean} ± {number(interval.half_width, metric)}"


def difference(paired: PairedDifference | None, metric: Metric) -> str:
    """'+1.2 [−0.3, +2.7]'."""
    if paired is None or paired.n == 0:
        return ""
    return interval_text(paired.mean, paired.low, paired.high, metric.scale, metric.digits)


def p_value(p: float) -> str:
    """'0.031*'; empty where no test was made."""
    if math.isnan(p):
        return ""
    return ("<0.001" if p < 0.0005 else f"{p:.3f}") + ("*" if p <= SIGNIFICANCE else "")


def _blank(value: float, text: str) -> str:
    return "" if math.isnan(value) else text


# A panel as plain texts: the one grid that Markdown, LaTeX and the terminal all show.


def _heads(table: ResultTable, panel: Panel) -> list[str]:
    if not panel.is_detailed:
        return ["Arm", "n", *(_column_head(table, metric) for metric in panel.metrics)]
    primary, *cost = panel.metrics
    heads = ["Arm", "n", primary.short, f"Difference to {table.reference}"]
    if table.num_seeds >= MIN_SEEDS_FOR_TEST:
        heads += ["p", "g"]
    return [*heads, "MDD", "r", *(metric.short for metric in cost)]


def _column_head(table: ResultTable, metric: Metric) -> str:
    return (metric.column or metric.short) if table.is_one_task else metric.short


def _detailed_line(table: ResultTable, panel: Panel, row: Row, mark: Callable[[str, Cell], str]) -> list[str]:
    primary, *cost = panel.metrics
    cell = row.cells[primary.key]
    line = [row.arm, _counts(row, cell.interval.n), mark(score(cell.interval, primary), cell),
            "reference" if row.is_reference else difference(cell.difference, primary)]
    if table.num_seeds >= MIN_SEEDS_FOR_TEST:
        size = math.nan if cell.difference is None else cell.difference.effect_size
        line += [p_value(cell.adjusted_p), _blank(size, f"{size:+.2f}".replace("-", MINUS))]
    correlation = math.nan if cell.difference is None else cell.difference.correlation
    line += [_blank(cell.detectable, number(cell.detectable, primary)),
             _blank(correlation, f"{correlation:.2f}".replace("-", MINUS))]
    return line + [_blank(mean, number(mean, metric)) for metric in cost
                   for mean in (row.cells[metric.key].interval.mean,)]


def _counts(row: Row, n: int) -> str:
    """'5 (1 failed)': seeds that there are, and the arm's trials that are not."""
    rest = ", ".join(f"{number} {state}" for state, number in row.unfinished.items())
    return f"{n} ({rest})" if rest else str(n or "")


def feet(table: ResultTable, panel: Panel) -> list[tuple[str, dict[str, str]]]:
    """Lines below the arms: a name, and a text for each metric that has one.

    What the cells count where it is not seeds, and what could be detected; a detailed panel has that beside each arm.
    """
    lines: list[tuple[str, dict[str, str]]] = []
    if table.counts != "seeds":
        counted = {metric.key: sorted({row.cells[metric.key].interval.n for row in table.rows} - {0})
                   for metric in panel.metrics}
        lines.append((table.counts, {key: "–".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
                                     for key, numbers in counted.items() if numbers}))
    detectable = {metric.key: median_and_range(found, metric.scale, metric.digits) for metric in panel.metrics
                  for found in (table.detectable(metric.key),) if found}
    if detectable and not panel.is_detailed:
        lines.append(("MDD, median (range)", detectable))
    return lines


def _foot_lines(table: ResultTable, panel: Panel) -> list[list[str]]:
    return [[name, "", *(texts.get(metric.key, "") for metric in panel.metrics)]
            for name, texts in feet(table, panel)]


def _two_lines(row: Row, metric: Metric, mark: Callable[[str, Cell], str]) -> tuple[str, str]:
    """Score and difference; n where it is less than the row's."""
    cell = row.cells[metric.key]
    first = mark(score(cell.interval, metric), cell)
    if 0 < cell.interval.n < row.num_trials:
        first += f" (n={cell.interval.n})"
    return first, difference(cell.difference, metric)


def _difference_line(row: Row, metrics: Sequence[Metric]) -> list[str]:
    """The paired difference with its half width; the level where there is no difference to show."""
    line = [row.arm, _counts(row, row.num_trials)]
    for metric in metrics:
        paired = row.cells[metric.key].difference
        if paired is None:
            line.append(score(row.cells[metric.key].interval, metric))
            continue
        mean = number(paired.mean, metric, signed=True)
        line.append(f"{mean} ± {number(paired.interval.half_width, metric)}" if paired.n > 1 else mean)
    return line


VERDICT_TITLE = "What was expected before any result, and what the 95 % interval of the difference says (unadjusted)"


def _verdict_lines(table: ResultTable) -> list[list[str]]:
    """Heads, then one line an expectation."""
    return [["Arm", "Outcome", "Expected", "Difference", "Reading"], *[
        [verdict.arm, verdict.metric.short, verdict.expected, difference(verdict.difference, verdict.metric),
         verdict.reading] for verdict in table.verdicts]]


# Markdown


def markdown(table: ResultTable) -> str:
    """Headline, warnings, one table a panel, caption."""
    parts = [f"# {table.title}", *(f"> **{_markdown_escape(warning)}**" for warning in table.warnings)]
    for panel in table.panels:
        heads = _heads(table, panel)
        lines = ["| " + " | ".join(_markdown_escape(head) for head in heads) + " |",
                 "|" + "|".join([" :-- ", *[" --: "] * (len(heads) - 1)]) + "|"]
        for row in table.rows:
            if panel.is_detailed:
                cells = _detailed_line(table, panel, row, _markdown_mark)
            else:
                pairs = [_two_lines(row, metric, _markdown_mark) for metric in panel.metrics]
                cells = [row.arm, _counts(row, row.num_trials),
                         *(f"{level} (Δ {change})" if change else level for level, change in pairs)]
            lines.append("| " + " | ".join([_markdown_escape(cells[0]), *cells[1:]]) + " |")
        lines += [f"| {' | '.join(line)} |" for line in _foot_lines(table, panel)]
        parts += ([f"**{_markdown_escape(panel.title)}**"] if panel.title else []) + ["\n".join(lines)]
    if table.verdicts:
        heads, *verdicts = [[_markdown_escape(cell) for cell in line] for line in _verdict_lines(table)]
        lines = [f"| {' | '.join(line)} |" for line in (heads, [":--"] * len(heads), *verdicts)]
        parts += [f"**{VERDICT_TITLE}**", "\n".join(lines)]
    parts += [_markdown_escape(" ".join(table.caption)), f"<!-- fingerprint {table.fingerprint} -->"]
    return "\n\n".join(parts) + "\n"


def _markdown_mark(text: str, cell: Cell) -> str:
    return {"best": f"**{text}** ‡", "contender": f"{text} †", "": text}[cell.mark]


def _markdown_escape(text: str) -> str:
    return re.sub(r"([|*_<>`\\])", r"\\\1", text)


# LaTeX

MAX_LINES = 62
"""Lines of one float that leave room for its caption on a page."""


def latex(table: ResultTable) -> str:
    """`table*` floats with booktabs rules; they need \\usepackage{booktabs} and nothing else.

    A panel of several outcomes is a grid of levels above a grid of paired differences, since both do not fit beside
    each other. Grids that do not fit on one page go on in another float.
    """
    grids = [grid for panel in table.panels for grid in _latex_grids(table, panel)]
    if table.verdicts:
        grids.append(_LatexGrid(VERDICT_TITLE, "lllrl", [[_latex_cell(cell) for cell in line]
                                                         for line in _verdict_lines(table)]))
    pages: list[list[_LatexGrid]] = [[]]
    for grid in grids:
        if pages[-1] and sum(len(other.lines) for other in pages[-1]) + len(grid.lines) > MAX_LINES:
            pages.append([])
        pages[-1].append(grid)
    end = "" if table.title.endswith(("?", ".")) else "."
    captions = [" ".join([f"{table.title}{end}", *table.warnings, *table.caption]),
                *[f"{table.title}{end} Continued."] * (len(pages) - 1)]
    return "\n".join([f"% fingerprint {table.fingerprint}", *(
        _latex_float(page, caption, _label(table.name) if number == 0 else "")
        for number, (page, caption) in enumerate(zip(pages, captions, strict=True)))])


@dataclass(frozen=True)
class _LatexGrid:
    title: str
    columns: str
    lines: list[list[str]]
    """Heads first; escaped."""
    num_feet: int = 0
    """Last lines that speak of all arms."""


def _latex_grids(table: ResultTable, panel: Panel) -> Iterator[_LatexGrid]:
    heads = [latex_escape(head) for head in _heads(table, panel)]
    if panel.is_detailed:
        lines = [_detailed_line(table, panel, row, _latex_mark) for row in table.rows]
        yield _latex_grid(panel.title, heads, lines, [])
        return
    levels = [[row.arm, _counts(row, row.num_trials),
               *[_two_lines(row, metric, _latex_mark)[0] for metric in panel.metrics]] for row in table.rows]
    changes = [_difference_line(row, panel.metrics) for row in table.rows
               if any(row.cells[metric.key].difference is not None for metric in panel.metrics)]
    foot = _foot_lines(table, panel)
    # What could be detected stands below the differences.
    yield _latex_grid(panel.title, heads, levels, [] if changes else foot)
    if changes:
        title = ": ".join(filter(None, (panel.title, f"paired difference to {table.reference} ± half width")))
        yield _latex_grid(title, heads, changes, foot)


def _latex_grid(title: str, heads: list[str], lines: list[list[str]], foot: list[list[str]]) -> _LatexGrid:
    return _LatexGrid(title, "l" + "r" * (len(heads) - 1),
                      [heads, *[[_latex_cell(text) for text in line] for line in (*lines, *foot)]], len(foot))


def _latex_float(grids: list[_LatexGrid], caption: str, label: str) -> str:
    lines = [r"\begin{table*}[t]", r"\centering\scriptsize\setlength{\tabcolsep}{3.5pt}",
             rf"\caption{{{latex_escape(caption)}}}" + (rf"\label{{tab:{label}}}" if label else "")]
    for grid in grids:
        heads, *body = grid.lines
        lines += [rf"\par\smallskip\textit{{{latex_escape(grid.title)}}}\par\smallskip"] if grid.title else []
        lines += [rf"\begin{{tabular}}{{{grid.columns}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule",
                  *[" & ".join(line) + r" \\" for line in body[:len(body) - grid.num_feet]],
                  *[r"\midrule"] * bool(grid.num_feet),
                  *[" & ".join(line) + r" \\" for line in body[len(body) - grid.num_feet:]], r"\bottomrule",
                  r"\end{tabular}"]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "±": r"$\pm$", MINUS: r"$-$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "λ": r"$\lambda$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$",
    "→": r"$\to$", "–": "--", "—": "---", "…": r"\ldots{}", "∞": r"$\infty$",
}
# Marks survive the escape of a cell's text as characters that no text holds.
_BOLD, _END = "\ue000", "\ue001"


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_cell(text: str) -> str:
    return latex_escape(text).replace(_BOLD, r"\textbf{").replace(_END, "}")


def _latex_mark(text: str, cell: Cell) -> str:
    return {"best": f"{_BOLD}{text}{_END}‡", "contender": f"{text}†", "": text}[cell.mark]


def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


# CSV


def csv_frame(table: ResultTable) -> pd.DataFrame:
    """One row per cell, in tracked units, with the run ids behind it."""
    records = []
    reference = next(row for row in table.rows if row.is_reference)
    for order, row in enumerate(table.rows):
        for metric in table.metrics:
            cell = row.cells[metric.key]
            paired = cell.difference
            records.append({
                "table": table.name, "study": table.study, "arm": row.arm, "arm_order": order, "metric": metric.key,
                "name": metric.name, "protocol": metric.protocol, "n": cell.interval.n, "mean": cell.interval.mean,
                "low": cell.interval.low, "high": cell.interval.high, "deviation": cell.interval.deviation,
                "reference": table.reference, "n_pairs": paired.n if paired else 0,
                "difference": paired.mean if paired else math.nan, "difference_low": paired.low if paired else math.nan,
                "difference_high": paired.high if paired else math.nan,
                "correlation": paired.correlation if paired else math.nan,
                "effect_size": paired.effect_size if paired else math.nan, "adjusted_p": cell.adjusted_p,
                "detectable": cell.detectable, "mark": cell.mark,
                "unfinished": " ".join(f"{state}:{number}" for state, number in row.unfinished.items()),
                "run_ids": " ".join(cell.run_ids.values()),
                "reference_run_ids": " ".join(reference.cells[metric.key].run_ids.values()),
                "fingerprint": table.fingerprint,
            })
    return pd.DataFrame.from_records(records)


# Terminal


def terminal(table: ResultTable, width: int) -> RenderableType:
    """Blocks of at most `width` characters, headline first, caption last.

    To stay on one line an arm shows its level on the primary outcome, and on the others only its difference to
    the reference, whose own row shows the level.
    """
    parts: list[RenderableType] = [Text(table.title, style="bold")]
    parts += [Text(warning, style="bold yellow") for warning in table.warnings]
    for panel in table.panels:
        title = panel.title
        if not panel.is_detailed:
            title = f"{title}: level of {table.reference}, then paired differences to it, ± half width"
        # Marks of eight outcomes would drown the differences: they stand in the files.
        lines = [_detailed_line(table, panel, row, _plain_mark) if panel.is_detailed
                 else _difference_line(row, panel.metrics) for row in table.rows]
        foot = _foot_lines(table, panel)
        is_bold = [*(row.is_reference for row in table.rows), *(False for _ in foot)]
        parts += ["", *_blocks(title, _heads(table, panel), [*lines, *foot], is_bold, width)]
    if table.verdicts:
        heads, *lines = _verdict_lines(table)
        parts += ["", *_blocks(VERDICT_TITLE, heads, lines, [False] * len(lines), width, (0, 1, 2, 4))]
    parts += ["", Text(" ".join(table.caption), style="dim")]
    return Group(*parts)


def print_terminal(table: ResultTable, console: Console | None = None) -> None:
    """Print a table to fit the console."""
    console = console or Console()
    console.print(terminal(table, console.width))


def _blocks(title: str, heads: list[str], lines: list[list[str]], is_reference: list[bool], width: int,
            left: Sequence[int] = (0,)) -> list[RenderableType]:
    """The grid, cut between columns into tables of even width that fit; each repeats the first column.

    Args:
        left: columns that are set flush left, as texts are.
    """
    gap = 2
    widths = [max(len(line[column]) for line in [heads, *lines]) + gap for column in range(len(heads))]
    num_others = len(heads) - 1
    groups: list[list[int]] = []
    for num_groups in range(1, num_others + 1):
        size = -(-num_others // num_groups)
        groups = [list(range(start, min(start + size, len(heads)))) for start in range(1, len(heads), size)]
        if max(widths[0] + sum(widths[column] for column in group) for group in groups) <= width:
            break
    parts: list[RenderableType] = [Text(title, style="italic")] if title else []
    for group in groups:
        grid = TerminalTable(box=None, padding=(0, gap, 0, 0), header_style="bold")
        for column in (0, *group):
            grid.add_column(heads[column], justify="left" if column in left else "right", no_wrap=True)
        for line, is_first in zip(lines, is_reference, strict=True):
            grid.add_row(*[Text(line[column]) for column in (0, *group)], style="bold" if is_first else "")
        parts.append(grid)
    return parts


def _plain_mark(text: str, cell: Cell) -> str:
    return {"best": f"{text} ‡", "contender": f"{text} †", "": text}[cell.mark]
