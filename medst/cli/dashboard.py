"""`medst dashboard`, `promote` and `pull`: MLflow in the browser, and models in its registry."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own asks for a password.")
    ] = "127.0.0.1",
) -> None:
    """Open MLflow on the tracking store: for this machine only, or with --host behind a password."""
    from medst.tracking import default_uri
    from medst.tracking.connection import EXPERIMENT, find_experiment
    from medst.tracking.dashboard import protection, server_command

    uri = default_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"The tracking server serves its own dashboard: {uri}")
        return
    protected = protection(host, port, Path.cwd() / "runs")
    require_free_port(port)
    experiment = find_experiment(uri, EXPERIMENT)
    # Without the parameter MLflow opens on traces and prompts, where no run is to be seen.
    page = f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning" if experiment else ""
    shown = "127.0.0.1" if protected is None else protected.hosts[0].split(":")[0]
    typer.echo(f"Dashboard in a few seconds on http://{shown}:{port}{page}\nCtrl-C ends it. Store: {uri}")
    if protected is not None:
        typer.echo("Reachable from other machines: sign in as admin, with MLFLOW_AUTH_ADMIN_PASSWORD as it was at the "
                   "first start. The connection is not encrypted; put a TLS proxy before it outside a trusted network.")
        os.environ.update(protected.environment)
    # One worker and no job queue: a reviewer needs no more.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = server_command(uri, host, port, protected)
    sys.stdout.flush()
    os.execv(command[0], command)


class PortTakenError(ValueError):
    """Another program listens on the port."""


def is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def require_free_port(port: int) -> None:
    """Raise PortTakenError, naming a free port, if another program listens on 127.0.0.1:`port`."""
    if is_free(port):
        return
    free = next((other for other in range(port + 1, min(port + 100, 65536)) if is_free(other)), None)
    remedy = f"; port {free} is free: make dashboard PORT={free}, or medst dashboard --port {free}" if free else ""
    raise PortTakenError(f"port {port} on 127.0.0.1 is taken, perhaps by another dashboard{remedy}")


def promote(
    alias: Annotated[str, typer.Option(help="Name under which the model is to be found, as `candidate`.")],
    run: Annotated[
        str | None, typer.Option(help="Run whose model it is; its id stands in the address of its page.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Instead: the study's run with the lowest validation loss.")] = None,
    arm: Annotated[str | None, typer.Option(help="Only runs of this arm of the study.")] = None,
    name: Annotated[str, typer.Option(help="Of the registered model.")] = "medst",
) -> None:
    """Put the saved model of a finished trial into the model registry, under an alias."""
    from medst.tracking.connection import TrackingError
    from medst.tracking.registry import best_run
    from medst.tracking.registry import promote as register

    if (run is None) == (study is None) or (arm is not None and study is None):
        raise TrackingError("name either --run, or --study (and perhaps --arm)")
    promoted = register(run or best_run(study or "", arm), alias, name)
    typer.echo(f"{promoted.name}@{promoted.alias} is version {promoted.version}, of run {promoted.run_id}. Fetch it: "
               f"medst pull {promoted.name}@{promoted.alias} --out FOLDER")


def pull(
    reference: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="Or NAME/VERSION.")],
    out: Annotated[Path, typer.Option(help="Folder to write; absent or empty.")],
) -> None:
    """Fetch a model from the registry, for MedST.from_pretrained and medst evaluate."""
    from medst.tracking.registry import pull as fetch

    folder = fetch(reference, out)
    typer.echo(f"The model is in {folder}; judge it with: medst evaluate --weights {folder}")
