"""`optimize serve`: a real Triton on this machine, for a person to try a repository."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["serve"]


@click.command(short_help="A real Triton over a model repository.")
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--http-port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--grpc-port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--metrics-port", default=8002, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def serve(repository: Path, host: str, http_port: int, grpc_port: int, metrics_port: int, debug: bool) -> None:
    """Serve REPOSITORY until Ctrl-C. The server is the real tritonserver, in an environment of its own."""
    from model_repository import Repository, ServerError
    from model_repository.environment import server_environment
    from model_repository.server import Server
    from model_repository.server import serve as serve_until_stopped
    from stages.errors import RequirementError

    models = Repository(repository).models()

    def ready(server: Server) -> None:
        click.echo(f"serving {', '.join(models) or 'no models'}; Ctrl-C stops", err=True)
        click.echo(f"  HTTP {server.http_address}   gRPC {server.grpc_address}   {server.metrics_address}", err=True)

    try:
        environment = server_environment(progress=lambda note: click.echo(note, err=True))
    except ServerError as error:
        raise RequirementError(str(error)) from error
    serve_until_stopped(
        repository, environment, ready, host=host, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port
    )
