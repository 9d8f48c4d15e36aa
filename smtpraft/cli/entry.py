"""The command line: what can be typed, and what each command's exit status means (sysexits).

Nothing heavy is imported here: `smtpraft status` must answer while a hurried operator's finger is still on the key.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from smtpraft._version import __version__
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.looking import add_looking

if TYPE_CHECKING:
    from smtpraft.cli.client import Client

Command = Callable[[argparse.Namespace], int]
_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Exit.USAGE, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    if argv is None and os.path.basename(sys.argv[0]) == "sendmail":  # a link, where programs look for one
        argv = ["sendmail", *sys.argv[1:]]
    arguments = build_parser().parse_args(argv)
    command: Command = arguments.command
    try:
        status = int(command(arguments))
        if sys.stdout is not None:  # it is None when nobody gave us one: `>&-`
            sys.stdout.flush()
        return status
    except CommandError as error:
        for line in error.lines:
            print(f"smtpraft: {line}", file=sys.stderr)
        return int(error.status)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough: `| head`
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered would fail again at the end
        print(f"smtpraft: cannot write the output: {error.strerror}", file=sys.stderr)
        return int(Exit.FAILED)


def build_parser() -> _Parser:
    """Return the whole grammar."""
    parser = _Parser(prog="smtpraft", description="A highly available SMTP server.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"smtpraft {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    shape = _Parser(add_help=False)
    shape.add_argument(
        "-w", "--write-out", choices=("simple", "table", "json"), default="simple", help="output format (simple)"
    )
    remote = _Parser(add_help=False, parents=[shape])
    remote.add_argument(
        "--endpoints",
        metavar="HOST:PORT,…",
        help="admin addresses; also https://…, unix:PATH (SMTPRAFT_ENDPOINTS, 127.0.0.1:8025)",
    )
    for name, text in (("cacert", "authority to trust"), ("cert", "our own certificate"), ("key", "its key")):
        remote.add_argument(f"--{name}", metavar="FILE", help=f"for https endpoints: {text} (SMTPRAFT_{name.upper()})")
    remote.add_argument("--token-file", metavar="FILE", help="bearer token of the admin API (SMTPRAFT_TOKEN_FILE)")
    remote.add_argument(
        "--command-timeout", metavar="S", type=_seconds, default=5.0, help="wait so long for an answer (5)"
    )
    configured = _Parser(add_help=False)
    configured.add_argument("-c", "--config", metavar="FILE", help="TOML file (SMTPRAFT_CONFIG; none: the defaults)")

    serve = commands.add_parser("serve", parents=[configured], help="run a node")
    serve.add_argument(
        "--join", metavar="HOST:PORT,…", help="cluster addresses of members: with an empty data directory, join theirs"
    )
    serve.set_defaults(command=_serve)

    status = commands.add_parser("status", parents=[remote], help="the state of the nodes")
    status.add_argument("--cluster", action="store_true", help="also members that no endpoint stands for")
    status.set_defaults(command=_remote("status"))
    health = commands.add_parser("health", parents=[remote], help="can the nodes commit?")
    health.set_defaults(command=_remote("health"))

    leader = commands.add_parser("leader", help="hand leadership over").add_subparsers(metavar="ACTION", required=True)
    transfer = leader.add_parser("transfer", parents=[remote], help="to NODE, or to the one that is furthest")
    transfer.add_argument("node", metavar="NODE", nargs="?")
    transfer.set_defaults(command=_remote("transfer"))
    down = leader.add_parser("step-down", parents=[remote], help="to the one that is furthest, and stand aside")
    down.add_argument("--seconds", metavar="S", type=_seconds, default=10.0, help="do not stand for election (10)")
    down.set_defaults(command=_remote("step_down"))
    forget = leader.add_parser("forget", parents=[remote], help="the first endpoint may vote for another at once")
    forget.set_defaults(command=_remote("forget"))
    _add_member(commands, remote)

    _add_queue(commands, remote)
    _add_kv(commands, remote)
    add_looking(commands, remote, _positive, _with_client)
    _add_snapshot(commands, shape, remote, configured)
    _add_recover(commands, shape)
    _add_config(commands, shape, configured)
    _add_wal(commands, shape)

    version = commands.add_parser("version", parents=[shape], help="this version, and whether it is compiled")
    version.set_defaults(command=_version)

    demo = commands.add_parser("demo", parents=[shape], help="a cluster on this machine, real mail, dying leaders")
    demo.add_argument("--nodes", type=int, choices=(1, 3, 5), default=3, help="how many (3)")
    demo.add_argument("--messages", metavar="N", type=_positive, default=3000, help="at least so many (3000)")
    demo.add_argument("--seed", metavar="N", type=int, default=1, help="of the generated messages and their order (1)")
    demo.add_argument("--keep", action="store_true", help="leave the directory with logs and data behind")
    demo.set_defaults(command=_demo)

    _add_log(commands, remote)
    _add_sendmail(commands)
    _add_shell(commands)
    _add_simulate(commands, shape)
    _add_bench(commands, shape)
    return parser


def _add_queue(commands: _Commands, remote: _Parser) -> None:
    queue = commands.add_parser("queue", help="look at the mail queue and change it")
    actions = queue.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[remote], help="as postqueue -p shows it")
    listing.add_argument("-j", dest="write_out", action="store_const", const="json", help="one JSON object a line")
    listing.add_argument("--limit", metavar="N", type=_positive, help="no more than N messages")
    listing.set_defaults(command=_remote("list_messages"))
    show = actions.add_parser("show", parents=[remote], help="one message, as postcat -q shows it")
    show.add_argument("id", metavar="ID")
    show.add_argument("--body", action="store_true", help="its content too")
    show.set_defaults(command=_remote("show"))
    for action, text, count in (
        ("delete", "remove messages for good, without a bounce", "+"),
        ("hold", "keep messages until they are released", "+"),
        ("release", "let held messages go", "+"),
        ("flush", "try deferred messages now (all of them without ID)", "*"),
    ):
        change = actions.add_parser(action, parents=[remote], help=text)
        change.add_argument("ids", metavar="ID", nargs=count, help="queue ids, - for ids from stdin, or ALL")
        change.set_defaults(command=_remote("change"), action=action)


def _add_kv(commands: _Commands, remote: _Parser) -> None:
    actions = commands.add_parser("kv", help="the replicated key-value map").add_subparsers(
        metavar="ACTION", required=True
    )
    reading = _Parser(add_help=False, parents=[remote])
    reading.add_argument("--stale", action="store_true", help="what this node knows, without asking a majority")
    get = actions.add_parser("get", parents=[reading], help="print a value")
    get.add_argument("key", metavar="KEY")
    get.set_defaults(command=_remote("kv_get"))
    put = actions.add_parser("put", parents=[remote], help="write a value, whatever was there")
    put.add_argument("key", metavar="KEY")
    put.add_argument("value", metavar="VALUE", help="- reads it from stdin")
    put.set_defaults(command=_remote("kv_put"), revision=None)
    cas = actions.add_parser("cas", parents=[remote], help="write a value if the key is at a revision")
    cas.add_argument("key", metavar="KEY")
    cas.add_argument("revision", metavar="REVISION", type=_revision, help="as `get -w json` tells; 0: not there")
    cas.add_argument("value", metavar="VALUE", help="- reads it from stdin")
    cas.set_defaults(command=_remote("kv_put"))
    delete = actions.add_parser("delete", parents=[remote], help="delete a key")
    delete.add_argument("key", metavar="KEY")
    delete.add_argument("--revision", metavar="N", type=_revision, help="only if it is at this one")
    delete.set_defaults(command=_remote("kv_delete"))
    listing = actions.add_parser("list", parents=[reading], help="keys, in order")
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only those that begin so")
    listing.add_argument("--limit", metavar="N", type=_positive, help="no more than N keys")
    listing.set_defaults(command=_remote("kv_list"))


def _add_member(commands: _Commands, remote: _Parser) -> None:
    member = commands.add_parser("member", help="look at the members of the cluster and change them")
    actions = member.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[remote], help="who votes, who listens, how far they are")
    listing.set_defaults(command=_remote("list_members"))
    add = actions.add_parser("add", parents=[remote], help="admit nodes that were started with --join")
    add.add_argument("members", metavar="ID=HOST:PORT", nargs="+", help="the node's cluster.listen, as others reach it")
    add.add_argument("--learner", action="store_true", help="never give it a vote by itself")
    add.set_defaults(command=_remote("change_members"), operation="add", command_timeout=15.0)
    for operation, text in (
        ("promote", "give a learner its vote now"),
        ("remove", "let a node go for good"),
        ("replace", "admit the new data directory of a node that lost the old one"),
    ):
        action = actions.add_parser(operation, parents=[remote], help=text)
        action.add_argument("node", metavar="NODE")
        if operation == "replace":
            action.add_argument("address", metavar="HOST:PORT", nargs="?", help="if it is not what it was")
        action.add_argument("--force", action="store_true", help="insist on what is declined as unwise")
        action.set_defaults(command=_remote("change_members"), operation=operation, command_timeout=15.0)


def _add_snapshot(commands: _Commands, shape: _Parser, remote: _Parser, configured: _Parser) -> None:
    snapshot = commands.add_parser(
        "snapshot", help="back the replicated state up, look at a backup, begin anew with it"
    )
    actions = snapshot.add_subparsers(metavar="ACTION", required=True)
    save = actions.add_parser("save", parents=[remote], help="from a running node to a new file")
    save.add_argument("file", metavar="FILE")
    save.set_defaults(command=_remote("save_snapshot"))
    status = actions.add_parser("status", parents=[shape], help="check a file, and say what is in it")
    status.add_argument("file", metavar="FILE")
    status.set_defaults(command=_snapshot("status"))
    restore = actions.add_parser(
        "restore", parents=[shape, configured], help="make the new data directory of a node of a new cluster"
    )
    restore.add_argument("file", metavar="FILE")
    restore.set_defaults(command=_snapshot("restore"))


def _add_recover(commands: _Commands, shape: _Parser) -> None:
    recover = commands.add_parser(
        "recover", parents=[shape], help="a majority is lost for good: begin a new cluster with what is left"
    )
    recover.add_argument(
        "directories", metavar="DIR", nargs="+", help="a data directory that is left, of a stopped node"
    )
    recover.add_argument("--save", metavar="FILE", required=True, help="the snapshot to make of them")
    recover.add_argument("--accept-data-loss", action="store_true", help="do it; without, only say what would be lost")
    recover.add_argument("-c", "--config", metavar="NEW.toml", help="also restore it as this node of the new cluster")
    recover.set_defaults(command=_recover)


def _add_config(commands: _Commands, shape: _Parser, configured: _Parser) -> None:
    config = commands.add_parser("config", help="check and show the settings")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", parents=[shape, configured], help="is a file usable?")
    check.add_argument("file", metavar="FILE", nargs="?")
    check.set_defaults(command=_config("check"))
    show = actions.add_parser("show", parents=[shape, configured], help="the settings, as TOML")
    show.add_argument("file", metavar="FILE", nargs="?")
    show.add_argument("--effective", action="store_true", help="all of them, defaults too, each with its source")
    show.set_defaults(command=_config("show"))


def _add_wal(commands: _Commands, shape: _Parser) -> None:
    wal = commands.add_parser("wal", help="look at the log of a node that is stopped")
    actions = wal.add_subparsers(metavar="ACTION", required=True)
    verify = actions.add_parser("verify", parents=[shape], help="read all of it: is anything missing or damaged?")
    listing = actions.add_parser("dump", parents=[shape], help="every batch in it; -w json: one object a line")
    listing.add_argument("--entries", action="store_true", help="and every entry")
    for parser in (verify, listing):
        parser.add_argument("data_dir", metavar="DATA_DIR", help="node.data_dir of the node")
    verify.set_defaults(command=_wal("wal_verify"))
    listing.set_defaults(command=_wal("wal_dump"))


def _wal(name: str) -> Command:
    def run(arguments: argparse.Namespace) -> int:
        from smtpraft.cli import wal

        command: Command = getattr(wal, name)
        return command(arguments)

    return run


def _add_simulate(commands: _Commands, shape: _Parser) -> None:
    simulate = commands.add_parser("simulate", parents=[shape], help="clusters on bad days, in virtual time")
    simulate.add_argument("--seeds", metavar="N", type=_positive, help="how many days (1000; 1 with --seed)")
    simulate.add_argument("--seconds", metavar="S", type=_positive, default=10, help="how long each is (10)")
    simulate.add_argument("--seed", metavar="N", type=int, help="the first seed (0)")
    simulate.add_argument("--fresh", action="store_true", help="begin with a seed that nobody has tried")
    simulate.add_argument("--nodes", metavar="N", type=int, choices=range(1, 8), help="of each cluster (1 to 7)")
    simulate.add_argument("--only", metavar="FAULT,…", help="break nothing but these; none: nothing at all")
    simulate.add_argument("--jobs", metavar="N", type=_positive, default=1, help="days at a time (1)")
    simulate.add_argument("--stop-after", metavar="N", type=_positive, default=1, help="violations that end it (1)")
    simulate.set_defaults(command=_simulate)


def _add_log(commands: _Commands, remote: _Parser) -> None:
    actions = commands.add_parser("log", help="what a running node logs").add_subparsers(
        metavar="ACTION", required=True
    )
    level = actions.add_parser("level", parents=[remote], help="say it, or set it until the next reload or restart")
    level.add_argument("level", metavar="LEVEL", nargs="?", choices=("debug", "info", "warning", "error"))
    level.set_defaults(command=_log_level)


def _log_level(arguments: argparse.Namespace) -> int:
    from smtpraft.cli import loglevel

    return loglevel.level(arguments)


def _add_sendmail(commands: _Commands) -> None:
    send = commands.add_parser("sendmail", help="send a message from stdin, as programs ask sendmail to")
    send.add_argument("recipients", metavar="ADDRESS", nargs="*", help="who gets it")
    send.add_argument("-t", dest="read_recipients", action="store_true", help="also those in To, Cc and Bcc")
    send.add_argument("-i", dest="ignore_dots", action="store_true", help="a line with a dot does not end the message")
    send.add_argument("-f", "-r", dest="sender", metavar="ADDRESS", help="the envelope's sender; <> for none")
    send.add_argument("-F", dest="full_name", metavar="NAME", help="the sender's name, if the header has none")
    send.add_argument("-b", dest="mode", metavar="m", help="-bm, which is what is done anyway")
    for option in "oBNRV":
        send.add_argument(f"-{option}", metavar="X", action="append", help="as sendmail's; -oi counts, others do not")
    for option in "GUmnv":
        send.add_argument(f"-{option}", action="store_true", help="as sendmail's, without effect")
    send.add_argument("--servers", metavar="HOST:PORT,…", help="SMTP addresses (SMTPRAFT_SMTP_SERVERS, 127.0.0.1:2525)")
    send.set_defaults(command=_sendmail)


def _sendmail(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.sendmail import sendmail

    return sendmail(arguments)


def _add_shell(commands: _Commands) -> None:
    completion = commands.add_parser("completion", help="a script that completes these commands in a shell")
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    completion.set_defaults(command=_completion)
    manual = commands.add_parser("manual", help="all commands as a page for man: smtpraft manual | man -l -")
    manual.set_defaults(command=_manual)


def _completion(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.completion import script

    print(script(build_parser(), arguments.shell), end="")
    return Exit.OK


def _manual(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.manual import page

    print(page(build_parser()), end="")
    return Exit.OK


def _add_bench(commands: _Commands, shape: _Parser) -> None:
    bench = commands.add_parser("bench", parents=[shape], help="how fast, measured here, against targets")
    bench.add_argument("--only", metavar="SUITE,…", help="of micro, mail, log, halves, failover, drain, queue")
    bench.add_argument("--rounds", metavar="N", type=_positive, default=5, help="what is compared, so often (5)")
    bench.add_argument("--quick", action="store_true", help="see that it works; the figures are worth little")
    bench.add_argument("--target", metavar="127.0.0.1:PORT,…", help="SMTP of a cluster that runs here: mail only")
    bench.add_argument("--directory", metavar="DIR", help="for the nodes' data; its disk is measured (TMPDIR, /tmp)")
    bench.add_argument("--output", metavar="FILE", help="keep all figures as JSON")
    bench.set_defaults(command=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.bench.run import bench

    return bench(arguments)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:10]) < 1_000_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _revision(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no revision: 0 (not there) or what a read gave")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0, at most 86400")
    return seconds


def _serve(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.serve import serve

    return serve(arguments.config, arguments.join)


def _with_client(command: Callable[[Client, argparse.Namespace], int]) -> Command:
    def run(arguments: argparse.Namespace) -> int:
        from smtpraft.cli.client import Client, endpoints_from, tls_from, token_from

        client = Client(
            endpoints_from(arguments.endpoints),
            arguments.command_timeout,
            token_from(arguments.token_file),
            tls_from(arguments.cacert, arguments.cert, arguments.key),
        )
        return command(client, arguments)

    return run


def _remote(function: str) -> Command:
    def run(client: Client, arguments: argparse.Namespace) -> int:
        from smtpraft.cli import kv, member, queue, status

        commands: dict[str, Callable[[Client, argparse.Namespace], int]] = {
            "status": status.status,
            "health": status.health,
            "transfer": member.transfer,
            "step_down": member.step_down,
            "forget": member.forget,
            "list_members": member.list_members,
            "change_members": member.change,
            "list_messages": queue.list_messages,
            "show": queue.show,
            "change": queue.change,
            "kv_get": kv.get,
            "kv_put": kv.put,
            "kv_delete": kv.delete,
            "kv_list": kv.list_keys,
            "save_snapshot": _save_snapshot,
        }
        return commands[function](client, arguments)

    return _with_client(run)


def _save_snapshot(client: Client, arguments: argparse.Namespace) -> int:
    from smtpraft.cli import snapshot

    return snapshot.save(client, arguments)


def _snapshot(action: str) -> Command:
    def run(arguments: argparse.Namespace) -> int:
        from smtpraft.cli import snapshot

        return snapshot.status(arguments) if action == "status" else snapshot.restore(arguments)

    return run


def _recover(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.recover import recover

    return recover(arguments)


def _config(action: str) -> Command:
    def run(arguments: argparse.Namespace) -> int:
        from smtpraft.cli import configuration

        path = arguments.file or arguments.config
        if action == "check":
            return configuration.check(path, arguments.write_out)
        return configuration.show(path, arguments.write_out, effective=arguments.effective)

    return run


def _version(arguments: argparse.Namespace) -> int:
    import platform

    from smtpraft.cli import halves
    from smtpraft.cli.output import print_json, print_rows

    parts = halves.parts()
    facts: dict[str, object] = {
        "version": __version__,
        "compiled": halves.complete(parts),
        "compiled_parts": parts,
        "python": platform.python_version(),
    }
    if arguments.write_out == "json":
        print_json(facts)
    elif arguments.write_out == "table":
        print_rows(("NAME", "VALUE"), list((facts | {"compiled_parts": halves.words(parts)}).items()), "table")
    else:
        print(f"smtpraft {__version__} (compiled: {halves.words(parts)}, python {facts['python']})")
    return Exit.OK


def _simulate(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.simulate import simulate

    return simulate(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from smtpraft.cli.demo import demo

    return demo(
        nodes=arguments.nodes,
        messages=arguments.messages,
        seed=arguments.seed,
        keep=arguments.keep,
        write_out=arguments.write_out,
    )
