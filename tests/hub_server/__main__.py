"""Command line of the server.

python -m tests.hub_server serve --data DIR [--ready FILE]       serve until interrupted
python -m tests.hub_server exec [--data DIR] -- COMMAND ...      run a command against a server of its own
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
from pathlib import Path

from tests.hub_server.process import listening_socket, run_against_server


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.hub_server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="action", required=True)
    serve = commands.add_parser("serve", help="serve until interrupted")
    serve.add_argument("--data", type=Path, required=True, help="directory of the repositories")
    serve.add_argument("--ready", type=Path, help="file that gets the URLs and the process id as JSON")
    serve.add_argument("--port", type=int, default=0, help="port of the Hub (default: any free one)")
    serve.add_argument("--storage-port", type=int, default=0, help="port of the storage (default: any free one)")
    serve.add_argument("--sockets", help="HUB,STORAGE: inherited listening sockets; stop when stdin closes")
    execute = commands.add_parser("exec", help="run a command against a server of its own")
    execute.add_argument("--data", type=Path, help="directory to keep (default: a temporary one)")
    execute.add_argument("command", nargs="+", metavar="COMMAND")
    for command in (serve, execute):
        command.add_argument("--xet", choices=["http", "off"], default="http", help="transfer of large files")
    return parser.parse_args(arguments)


def _serve(options: argparse.Namespace) -> int:
    from tests.hub_server.app import serve

    if options.sockets:
        sockets = [socket.socket(fileno=int(number)) for number in options.sockets.split(",")]
    else:
        sockets = [listening_socket(options.port), listening_socket(options.storage_port)]
    serve(
        options.data.resolve(),
        *sockets,
        xet_enabled=options.xet == "http",
        ready=options.ready,
        until_stdin_closes=options.sockets is not None,
    )
    return 0


def _execute(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True) as temporary:
        data = options.data.resolve() if options.data else Path(temporary)
        return run_against_server(options.command, data, xet=options.xet == "http")


def main() -> int:
    """Run the command line; the exit status."""
    options = _arguments(sys.argv[1:])
    return _serve(options) if options.action == "serve" else _execute(options)


if __name__ == "__main__":
    sys.exit(main())
