"""The front door of one host: HAProxy's configuration.

What is reachable from outside is a list: the model's inference, its readiness and the server's health. Everything else
that Triton answers (repository control, logging, trace and shared-memory settings, statistics, metrics) is refused,
whatever it is called in a later version. Two versions of the model stand behind it, `stable` and `candidate`; their
weights are changed while it runs, over its runtime socket, by `optimize rollout`.

Written for HAProxy 2.6 and later (`docs.haproxy.org/2.6/configuration.html`, `…/management.html`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from stages.errors import InputError

__all__ = [
    "BACKEND", "CANDIDATE", "OPERATOR_SOCKET", "REQUESTS", "RUNTIME_SOCKET", "STABLE", "STATE_FILE",
    "VERSION_HEADER", "FrontDoor", "Limits", "Upstream", "haproxy_configuration",
]  # fmt: skip

BACKEND = "triton"
STABLE = "stable"
CANDIDATE = "candidate"
RUNTIME_SOCKET = "haproxy.sock"
OPERATOR_SOCKET = "operator.sock"
"""Reaches either version by name, whatever their weights; a file, so that who may use it is a question of rights."""
STATE_FILE = "servers.state"
"""The weights as they were last set: the configuration has those of the beginning, and a restart must not go back."""
VERSION_HEADER = "x-optimize-version"
REQUESTS = "requests"
"""The ring buffer that holds a line for every finished request; in a sampled one's the request itself."""

_LINE = (
    '"server":"%s","asked":"%[var(txn.asked)]","status":%ST,"state":"%ts",'
    '"at":"%[var(txn.start)]","us":"%[var(txn.us)]"'
)
_SAMPLE = '"path":"%[var(txn.path)]","json_bytes":"%[var(txn.json_bytes)]","body":"%[var(txn.body)]"'
# Nothing that a client writes freely stands in a line: the path is one of three, the rest are numbers and base64.
_LONGEST_LINE = 65535
_BUFFER_BYTES = 65536
_SAMPLED_BYTES = 45_000  # in base64 a line of that length
_RESOLVERS = """\
# The engine gives its containers a name server, Docker another one than Podman. One that says nothing for a while (the
# engine is being restarted) takes no version out of service; one that knows the name no more does.
resolvers names
    parse-resolv-conf
    hold valid 5s
    hold timeout 1h
    accepted_payload_size 8192
"""


@dataclass(frozen=True)
class Upstream:
    """One version's server. `weight`: its share of the traffic at the beginning, in percent."""

    address: str
    weight: int


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    `requests_per_10s`: of one API key. `body_bytes`: of one request. `answer_s`: how long the server may take to
    answer. `connections`: of all clients at once.
    """

    requests_per_10s: int = 1000
    body_bytes: int = 16 * 1024 * 1024
    answer_s: int = 30
    connections: int = 2000


@dataclass(frozen=True)
class FrontDoor:
    """What a configuration is made from.

    `bind`: where clients come in (`:8443`). `certificate`: a PEM file with certificate and key; None serves plain HTTP.
    `keys`: a file with the SHA-256 of the API keys, a hexadecimal line each; None asks for no key. `run`: the directory
    of the sockets. `log`: where lines for people go. `names`: the addresses are names that may move, and are looked up
    again and again. `sampled_percent`: of the requests, kept for `optimize rollout` to ask both versions again.
    """

    model: str
    stable: Upstream
    candidate: Upstream | None = None
    bind: str = ":8443"
    certificate: str | None = "/etc/haproxy/private/front.pem"
    keys: str | None = "/etc/haproxy/keys.sha256"
    run: str = "/run/haproxy"
    log: str = "stdout"
    names: bool = False
    sampled_percent: int = 0
    limits: Limits = field(default_factory=Limits)


def haproxy_configuration(door: FrontDoor) -> str:
    """The text of `haproxy.cfg`. Raises `InputError` for weights that leave no server to any request."""
    servers = {STABLE: door.stable} | ({CANDIDATE: door.candidate} if door.candidate else {})
    if not any(server.weight for server in servers.values()):
        raise InputError("both versions have a weight of 0: no request would be answered")
    if any(not 0 <= server.weight <= 100 for server in servers.values()):
        raise InputError("a weight is a percentage, from 0 to 100")
    sections = [
        _global(door),
        *([_RESOLVERS] if door.names else []),
        _ring(16 if door.sampled_percent else 4),
        _defaults(door),
        _rates(),
        _front(door),
        _backend(door, servers),
        _operator(door, servers),
    ]
    return "\n".join(sections)


def _global(door: FrontDoor) -> str:
    # The state is read once at the start; addresses are looked up again all the same (`init-addr`).
    return f"""\
global
    log {door.log} format raw local0
    maxconn {door.limits.connections}
    tune.bufsize {_BUFFER_BYTES if door.sampled_percent else 16384}
    stats socket {door.run}/{RUNTIME_SOCKET} mode 660 level admin
    stats timeout 1h
    server-state-file {door.run}/{STATE_FILE}
    ssl-default-bind-options ssl-min-ver TLSv1.2
    hard-stop-after {door.limits.answer_s + 5}s
"""


def _ring(mebibytes: int) -> str:
    return f"""\
# A line for every finished request. `optimize rollout` reads them over the runtime socket.
ring {REQUESTS}
    format raw
    maxlen {_LONGEST_LINE}
    size {mebibytes * 1024 * 1024}
"""


def _defaults(door: FrontDoor) -> str:
    limits = door.limits
    moving = "\n    default-server resolvers names init-addr libc,none" if door.names else ""
    return f"""\
defaults
    mode http
    load-server-state-from-file global
    timeout connect 5s
    timeout http-request 10s
    timeout client 30s
    timeout http-keep-alive 60s
    timeout queue 10s
    timeout server {limits.answer_s}s
    # Only what never reached a server is asked again: whether an answer was on its way, nobody knows.
    retries 2
    option redispatch
    retry-on conn-failure
    option http-keep-alive
    option dontlognull{moving}
"""


def _rates() -> str:
    return """\
backend rates
    stick-table type string len 64 size 10k expire 60s store http_req_rate(10s)
"""


def _front(door: FrontDoor) -> str:
    limits, model = door.limits, re.escape(door.model)
    # Over HTTP/2 a refusal that comes before the body is read often reaches the client as a cancelled stream.
    tls = f" ssl crt {door.certificate} alpn http/1.1" if door.certificate else ""
    lines = [
        f"bind {door.bind}{tls}",
        *([] if door.sampled_percent else ["log global"]),  # what is asked belongs in no log
        f"log ring@{REQUESTS} len {_LONGEST_LINE} format raw local0",
        "log-format '{" + ",".join([_LINE, *([_SAMPLE] if door.sampled_percent else [])]) + "}'",
        "# Microseconds from the request's headers to the answer's.",
        "http-request set-var(txn.start) date(0,us)",
        "http-after-response set-var(txn.us) date(0,us),sub(txn.start)",
        "",
        "# What may be asked is a list; all else of Triton's is not there for anybody outside.",
        f"acl asks path_reg ^/v2/models/{model}/(infer|generate|generate_stream)$",
        f"acl looks path_reg ^/v2/models/{model}(/ready|/config)?$",
        "acl looks path /v2 /v2/health/live /v2/health/ready",
        "http-request set-var(txn.asked) bool(true) if asks METH_POST",
        'http-request return status 403 content-type text/plain string "not open to the outside\\n" '
        "unless asks METH_POST or looks METH_GET",
    ]
    if door.keys:
        lines += [
            "",
            "# The file holds digests of the keys: who reads it cannot use them, and no key reaches the server.",
            "http-request set-var(txn.key) req.hdr(x-api-key)",
            "http-request set-var(txn.key) http_auth_bearer unless { var(txn.key) -m found }",
            "http-request set-var(txn.client) var(txn.key),sha2(256),hex",
            "http-request return status 401 hdr WWW-Authenticate Bearer content-type text/plain "
            f'string "no valid API key\\n" unless {{ var(txn.client) -m str -i -f {door.keys} }}',
            "http-request del-header x-api-key",
            "http-request del-header authorization",
            "http-request track-sc0 var(txn.client) table rates",
        ]
    else:
        lines += ["", "http-request track-sc0 src table rates"]
    lines += [
        "http-request return status 429 hdr Retry-After 10 content-type text/plain "
        f'string "too many requests\\n" if {{ sc_http_req_rate(0,rates) gt {limits.requests_per_10s} }}',
        "# A length that is known beforehand is one that can be limited.",
        'http-request return status 411 content-type text/plain string "send a Content-Length\\n" '
        "if METH_POST !{ req.hdr(content-length) -m found }",
        'http-request return status 413 content-type text/plain string "the request is too large\\n" '
        f"if {{ req.hdr_val(content-length) gt {limits.body_bytes} }}",
        f"http-request del-header {VERSION_HEADER}",
    ]
    if door.sampled_percent:
        lines += _samples(door.sampled_percent)
    lines.append(f"default_backend {BACKEND}")
    return _section(f"frontend {BACKEND}-front", lines)


def _samples(percent: int) -> list[str]:
    return [
        "",
        "# A part of the requests is kept, body and all, until `optimize rollout` has read it and asked both versions",
        "# the same. A body that is compressed or longer than this is left out.",
        f"acl whole req.hdr_val(content-length) le {_SAMPLED_BYTES}",
        "acl packed req.hdr(content-encoding) -m found",
        f"acl drawn rand(100) lt {percent}",
        "acl infers path_end /infer",
        "http-request set-var(txn.path) path if asks infers whole !packed drawn",
        "acl sampled var(txn.path) -m found",
        "http-request wait-for-body time 5s if sampled",
        "http-request set-var(txn.body) req.body,base64 if sampled",
        "http-request set-var(txn.json_bytes) req.hdr_val(inference-header-content-length) if sampled",
    ]


def _backend(door: FrontDoor, servers: dict[str, Upstream]) -> str:
    lines = [
        "balance roundrobin",
        "http-reuse safe",
        "option httpchk",
        f"http-check send meth GET uri /v2/models/{door.model}/ready",
        "http-check expect status 200",
        *(
            f"server {name} {server.address} weight {server.weight} check inter 2s fall 3 rise 2"
            for name, server in servers.items()
        ),
    ]
    return _section(f"backend {BACKEND}", lines)


def _operator(door: FrontDoor, servers: dict[str, Upstream]) -> str:
    """The way to either version, by name, for who may open the socket."""
    lines = [f"bind unix@{door.run}/{OPERATOR_SOCKET} mode 660"]
    named = " ".join(f"!for-{name}" for name in servers)
    lines += [f"acl for-{name} req.hdr({VERSION_HEADER}) {name}" for name in servers]
    lines.append(f"http-request return status 404 if {named}")
    lines += [f"use_backend only-{name} if for-{name}" for name in servers]
    sections = [_section("frontend operator", lines)]
    sections += [
        _section(f"backend only-{name}", ["http-reuse safe", f"server {name} {server.address}"])
        for name, server in servers.items()
    ]
    return "\n".join(sections)


def _section(head: str, lines: list[str]) -> str:
    return "\n".join([head, *(f"    {line}" if line else "" for line in lines), ""])
