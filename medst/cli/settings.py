"""`medst config`: every setting with its default and meaning, or those of one experiment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medst.cli.options import Assignments, compose

if TYPE_CHECKING:
    from medst.config import Section

config_app = typer.Typer(help="Settings: all of them with default and meaning, or those of one experiment.")


@config_app.callback(invoke_without_command=True)
def config_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        config_keys("")


@config_app.command("keys")
def config_keys(
    part: Annotated[str, typer.Argument(help="Only keys that contain this, as in `objective` or `temperature`.")] = "",
) -> None:
    """List every setting with its default and its meaning."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medst.config import Config, ConfigError, flatten, known_keys, nearest

    documentation = field_documentation(Config)
    found = {key: value for key, value in flatten(Config()).items() if part in key}
    if not found:
        guess = nearest(part, known_keys())
        raise ConfigError(f"no key contains '{part}'" + (f"; the nearest key is '{guess}'" if guess else ""))
    table = Table("key", "default", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(Text(key, style="cyan"), Text(shown), Text(documentation.get(key, "")))
    Console().print(table)


@config_app.command("show")
def config_show(
    experiments: Annotated[list[Path] | None, typer.Argument(help="YAML files, later ones over earlier ones.")] = None,
    assignments: Assignments = None,
) -> None:
    """Print the whole configuration that files and overrides make, as YAML."""
    import yaml

    config = compose(experiments, assignments)
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


def field_documentation(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Dotted key -> the text that stands below the field in the source, as one line."""
    import ast
    import inspect
    import textwrap

    from medst.config import Section

    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        key = f"{prefix}{field.target.id}"
        kind = section.model_fields[field.target.id].annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found.update(field_documentation(kind, f"{key}."))
        elif isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[key] = " ".join(str(after.value.value).split())
    return found
