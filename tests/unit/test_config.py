"""Settings: strict, explained, and from three places."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from smtpraft.cli.daemon import node_options
from smtpraft.cli.settings import SECTIONS, load
from smtpraft.cluster.settings import NodeOptions
from smtpraft.config import Address, ClusterSettings, Config, ConfigError, find_problems, find_warnings, parse_address


def write(directory: Path, text: str) -> str:
    path = directory / "smtpraft.toml"
    path.write_text(text)
    return str(path)


def problems_of(directory: Path, text: str, environ: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(write(directory, text), environ or {})
    return caught.value.problems


def test_no_file_is_one_node_that_needs_nothing() -> None:
    loaded = load(None, {})
    assert loaded.config == Config()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.warnings == ()
    assert loaded.config.smtp.listen == ["127.0.0.1:2525"]


def test_the_sample_of_the_manual_loads(tmp_path: Path) -> None:
    loaded = load(
        write(
            tmp_path,
            """
[node]
id = "node-1"
data_dir = "/var/lib/smtpraft"

[cluster]
name = "mail-a"
listen = "127.0.0.1:5001"
peers = ["node-2=127.0.0.1:5002", "node-3=127.0.0.1:5003"]
secret_file = "/etc/smtpraft/secret"
election = "raft"
election_timeout_ms = 150
heartbeat_interval_ms = 50
max_log_entries = 10000
snapshot_threshold = 5000

[smtp]
listen = ["127.0.0.1:2525"]
hostname = "mx1.example.org"
max_message_bytes = 52428800
relay_networks = ["127.0.0.0/8", "::1/128"]

[delivery]
routes = [{ domain = "*", to = "smtp://127.0.0.1:2600" }]
retry_s = [60, 300, 900, 1800, 3600]
expire_s = 432000

[admin]
listen = "127.0.0.1:8025"
""",
        ),
        {},
    )
    assert loaded.config.cluster.name == "mail-a"
    assert loaded.config.delivery.routes[0].to == "smtp://127.0.0.1:2600"
    assert loaded.sources["smtp.hostname"].endswith("smtpraft.toml:19")
    assert loaded.sources["smtp.max_recipients"] == "default"


def test_an_unknown_setting_is_named_with_its_place_and_its_neighbour(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, '[smtp]\nlistn = ["127.0.0.1:25"]\n')
    assert problem.endswith("smtpraft.toml:2: unknown setting `listn` in [smtp] (did you mean `listen`?)")


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "\n[smpt]\n")
    assert problem.endswith("smtpraft.toml:2: unknown section [smpt] (did you mean `smtp`?)")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "[smtp]\nfoo = 1\nbar = 2\n[nodes]\n", {"SMTPRAFT_LOG__LEVL": "info"})
    assert len(problems) == 4
    problems = problems_of(tmp_path, "[smtp]\nmax_recipients = 'many'\nmax_connections = 'more'\n[log]\nlevel = 1\n")
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == [
        "smtp.max_recipients",
        "smtp.max_connections",
        "log.level",
    ]


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "smtpraft.toml"
    path.write_text('[node]\nid = "a"\n', encoding="utf-8-sig")
    assert load(str(path), {}).config.node.id == "a"


def test_a_wrong_type_names_the_setting(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "[cluster]\nelection_timeout_ms = '150'\n")
    assert "smtpraft.toml:2: cluster.election_timeout_ms: expected `int`, got `str`" in problem


def test_a_route_without_target_names_the_route(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, '[delivery]\nroutes = [{ domain = "*" }]\n')
    assert "delivery.routes[0]" in problem
    assert "`to`" in problem


def test_what_is_no_toml_names_the_line(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "[smtp\n")
    assert "not TOML" in problem
    assert "line 1" in problem


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/x\.toml: cannot read the configuration: No such file"):
        load("/nowhere/x.toml", {})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[cluster]\nheartbeat_interval_ms = 100\n", "must be at most half of election_timeout_ms, 75"),
        ("[cluster]\nelection_timeout_ms = 155\n", "must be a multiple of tick_ms, 10"),
        ("[cluster]\nelection_timeout_ms = 1500\n", "must be above twice election_timeout_ms, 3000"),
        ("[cluster]\nmax_log_entries = 1\n", "must be 10 to 100000000"),
        ('[cluster]\nelection = "dice"\n', 'must be "raft" or "lowest-id"'),
        ('[cluster]\npeers = ["node-1=127.0.0.1:1"]\n', "is this node itself"),
        ('[cluster]\npeers = ["a=127.0.0.1:1", "a=127.0.0.1:2"]\n', "listed twice"),
        ('[cluster]\npeers = ["b=10.0.0.1:5000"]\n', "secret_file is required"),
        ('[node]\nid = "a b"\n', "no node id"),
        ('[smtp]\nlisten = ["25"]\n', "write host:port"),
        ("[smtp]\nlisten = []\n", "must name at least one address"),
        ('[smtp]\nrelay_networks = ["10.0.0.1/8"]\n', "has host bits set"),
        (
            "[cluster]\nmax_inflight_bytes = 1048576\nmax_append_bytes = 2097152\n",
            "must be at least max_append_bytes, 2097152",
        ),
        ("[cluster]\nmax_apply_bytes = 1\n", "must be 1048576 to"),
        ("[smtp]\nworkers = -1\n", "smtp.workers = -1: must be 0 to 64"),
        ("[smtp]\nworkers = 65\n", "smtp.workers = 65: must be 0 to 64"),
        ("[cluster]\nmax_uncommitted_bytes = 1\n", "must be 1048576 to"),
        ("[smtp]\nmax_inflight_bytes = 1048576\n", "must be at least smtp.max_message_bytes"),
        ('[delivery]\nroutes = [{ domain = "*", to = "smpt://x" }]\n', "route to 'smpt://x'"),
        ("[delivery]\nretry_s = []\n", "must be a list of waits"),
        ('[admin]\nlisten = "0.0.0.0:8025"\n', "set admin.token_file"),
        ('[log]\nlevel = "loud"\n', 'must be "debug"'),
        ('[cluster]\npeers = ["a=127.0.0.1:5001"]\n', "has the address of this node itself"),
        ('[smtp]\nlisten = ["127.0.0.1:8025"]\n', "is also in smtp.listen"),
        ('[smtp]\nlisten = ["127.0.0.1:25", "127.0.0.1:25"]\n', "is also in smtp.listen"),
        ('[smtp]\npostmaster = "a@b.test\\r\\nX: y"\n', "write a whole address"),
        ('[smtp]\npostmaster = "postmaster"\n', "write a whole address"),
        ('[smtp]\nlocal_domains = ["*"]\n', "'*' is no domain"),
    ],
)
def test_a_rule_says_what_to_do(tmp_path: Path, text: str, problem: str) -> None:
    (told,) = problems_of(tmp_path, text)
    assert problem in told
    assert told.startswith((f"{tmp_path}/smtpraft.toml:2: ", "cluster.", "admin.listen: '127.0.0.1:8025' is also"))


def test_small_values_for_tests_are_accepted(tmp_path: Path) -> None:
    text = "[cluster]\nmax_log_entries = 200\nsnapshot_threshold = 100\n[delivery]\nretry_s = [1]\nexpire_s = 5\n"
    assert load(write(tmp_path, text), {}).config.delivery.retry_s == [1.0]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[cluster]\nelection_timeout_ms = 200\n")
    loaded = load(None, {"SMTPRAFT_CONFIG": path, "SMTPRAFT_CLUSTER__ELECTION_TIMEOUT_MS": "300"})
    assert loaded.path == path
    assert loaded.config.cluster.election_timeout_ms == 300
    assert loaded.sources["cluster.election_timeout_ms"] == "SMTPRAFT_CLUSTER__ELECTION_TIMEOUT_MS"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        (
            "CLUSTER__PEERS",
            "node-2=127.0.0.1:5002, node-3=127.0.0.1:5003",
            ["node-2=127.0.0.1:5002", "node-3=127.0.0.1:5003"],
        ),
        ("CLUSTER__PEERS", "", []),
        ("SMTP__LISTEN", '["127.0.0.1:25", "[::1]:25"]', ["127.0.0.1:25", "[::1]:25"]),
        ("DELIVERY__RETRY_S", "1,2.5", [1.0, 2.5]),
        ("DELIVERY__RETRY_S", "[1, 2]", [1.0, 2.0]),
        ("DELIVERY__EXPIRE_S", "3600", 3600.0),
        ("SMTP__COMMIT_TIMEOUT_S", "2.5", 2.5),
        ("NODE__ID", "17", "17"),
    ],
)
def test_a_variable_has_the_type_of_its_setting(name: str, text: str, value: object) -> None:
    config = load(None, {f"SMTPRAFT_{name}": text}).config
    section, _, key = name.lower().partition("__")
    assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize("text", ['[{ domain = "a.example", to = "discard:" }]', "a.example=discard:"])
def test_routes_come_from_the_environment_too(text: str) -> None:
    (route,) = load(None, {"SMTPRAFT_DELIVERY__ROUTES": text}).config.delivery.routes
    assert (route.domain, route.to) == ("a.example", "discard:")


def test_a_variable_that_is_no_setting_is_an_error_but_others_variables_are_not() -> None:
    with pytest.raises(ConfigError, match="SMTPRAFT_SMTP__HOSTNAM: unknown setting `hostnam`"):
        load(None, {"SMTPRAFT_SMTP__HOSTNAM": "x"})
    load(None, {"SMTPRAFT_PURE": "1", "SMTPRAFT_SERVICE_HOST": "10.0.0.1", "SMTPRAFT_PORT_25_TCP": "x"})


def test_a_variable_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ConfigError, match="SMTPRAFT_SMTP__MAX_RECIPIENTS: 'many' is no whole number"):
        load(None, {"SMTPRAFT_SMTP__MAX_RECIPIENTS": "many"})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:25", Address("127.0.0.1", 25)),
        ("[::1]:0", Address("::1", 0)),
        ("mx.example.org:2525", Address("mx.example.org", 2525)),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "25", ":25", "host:", "host:x", "host:65536", "::1:25", "host:-1", "host:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_what_works_but_is_dangerous_is_warned_about() -> None:
    config = msgspec.convert(
        {
            "cluster": {"election": "lowest-id", "peers": ["b=127.0.0.1:5002"]},
            "smtp": {"listen": ["0.0.0.0:25"], "relay_networks": ["0.0.0.0/0"]},
        },
        Config,
    )
    assert find_problems(config) == []
    text = "\n".join(find_warnings(config))
    for part in (
        "unsafe under partitions",
        "2 nodes survive the loss of 0",
        "set the server's own name",
        "anyone who can connect",
    ):
        assert part in text


def test_the_manual_lists_every_setting_with_its_default() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    for section, kind in SECTIONS.items():
        part = manual.partition(f"## [{section}]")[2].partition("\n## ")[0]
        for key, value in msgspec.to_builtins(kind()).items():
            line = next((line for line in part.splitlines() if line.startswith(f"| `{key}` |")), "")
            assert line, f"docs/configuration.md does not list {section}.{key}"
            shown = line.split("|")[2].strip().strip("`")
            assert msgspec.toml.decode(f"value = {shown}".encode())["value"] == value, line


def test_a_lease_is_a_promise_not_to_vote(tmp_path: Path) -> None:
    told = problems_of(tmp_path, '[cluster]\nelection = "lowest-id"\nlease_reads = true\n')
    assert any("lease_reads" in line and 'needs election = "raft"' in line for line in told)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_the_environment_says_yes_and_no(text: str, value: bool) -> None:
    assert load(None, {"SMTPRAFT_CLUSTER__LEASE_READS": text}).config.cluster.lease_reads is value
    with pytest.raises(ConfigError, match="'maybe' is neither true nor false"):
        load(None, {"SMTPRAFT_CLUSTER__LEASE_READS": "maybe"})


def test_every_setting_of_the_cluster_reaches_the_node() -> None:
    """By name: one that is missing there would be a setting without effect."""
    told_otherwise = {"name", "listen", "peers", "secret_file"}
    assert set(ClusterSettings.__struct_fields__) - told_otherwise <= set(NodeOptions.__dataclass_fields__)
    options = node_options(load(None, {"SMTPRAFT_CLUSTER__MAX_APPLY_BYTES": "2097152"}).config, None)
    assert (options.max_apply_bytes, options.lease_reads) == (2 * 1024 * 1024, False)


def test_a_read_lease_ends_before_anybody_may_vote_again() -> None:
    """Fifteen ticks of 10 ms, of which two may be short, and a tenth for clocks that differ."""
    options = node_options(load(None, {}).config, None)
    assert options.read_lease_ms == 117
    assert dataclasses.replace(options, election_timeout_ms=20).read_lease_ms == 0
