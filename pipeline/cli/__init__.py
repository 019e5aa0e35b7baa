"""The command `optimize`. Each command parses, calls and prints; what it does is done elsewhere."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType

import click

__all__ = ["main"]

_COMMANDS = {
    "run": "pipeline.cli.run:run",
    "init": "pipeline.cli.init:init",
    "inspect": "pipeline.cli.inspect:inspect",
    "explain": "pipeline.cli.explain:explain",
    "compare": "pipeline.cli.compare:compare",
    "plan-memory": "pipeline.cli.plan_memory:plan_memory",
    "serve": "pipeline.cli.serve:serve",
    "bench": "pipeline.cli.bench:bench",
    "versions": "pipeline.cli.repository:versions",
    "promote": "pipeline.cli.repository:promote",
    "rollback": "pipeline.cli.repository:rollback",
    "watch": "pipeline.cli.watch:watch",
    "webhook": "pipeline.cli.webhook:webhook",
    "image": "pipeline.cli.image:image",
    "deploy": "pipeline.cli.deploy:deploy",
    "rollout": "pipeline.cli.rollout:rollout",
    "ui": "pipeline.cli.ui:ui",
    "records": "pipeline.cli.records:records",
    "doctor": "pipeline.cli.doctor:doctor",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if near:
                raise click.UsageError(f"there is no command {args[0]!r}; did you mean {near[0]!r}?", ctx) from error
            raise


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit codes: 0 done, 2 bad command line, recipe or input, 3 no variant passed its gates (or a "
        "candidate was rolled back), 4 a stage failed, 5 something required is missing here, 1 a bug, 130 interrupted."
    ),
)
@click.version_option(package_name="optimize-pipeline", prog_name="optimize")
def optimize() -> None:
    """Takes a trained model and publishes the fastest form of it that provably keeps its accuracy."""


def main() -> None:
    """The entry point: runs the command and turns what it raises into a message and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    debug = "--debug" in sys.argv
    try:
        optimize(standalone_mode=False, prog_name="optimize")
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; finished steps are kept, and the same command goes on from there", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - the last stop: every error becomes a message and a code here
        from pipeline.cli.failure import explain

        message, code = explain(error)
        if debug:
            import traceback

            traceback.print_exc()
        click.echo(f"optimize: {message}", err=True)
        sys.exit(code)


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
