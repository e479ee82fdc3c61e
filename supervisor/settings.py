"""The one typed tree of settings: what exists, its default, its unit, its bounds.

Responsible for naming every setting once. Reading them (TOML file < environment < flags, all
faults at once) is ``settings_sources.py``; nothing else in the project reads the environment.

Every field is ``Annotated[type, Meta(...)]``: ``description`` is the reference text of docs/,
the bounds are checked when the tree is read, and ``extra["env"]`` names the variable that the
platform already uses for it. Every field can also be set by ``LIGHTERMAN_<SECTION>_<FIELD>``.

This module is a leaf: it reads nothing and imports nothing of ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section of the tree."""


def _doc(text: str, env: str | None = None, secret: bool = False, **bounds: Any) -> Meta:
    extra: dict[str, Any] = {}
    if env is not None:
        extra["env"] = env
    if secret:
        extra["secret"] = True
    return Meta(description=text, extra=extra, **bounds)


Seconds = Annotated[float, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Bytes = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class WorkerSettings(Section, frozen=True):
    """The worker itself: where it listens, what it is called, where it keeps state."""

    host: Annotated[str, _doc("Address that the client port binds.")] = "0.0.0.0"
    port: Annotated[
        Port, _doc("Port that clients connect to; 0 picks a free one.", "WORKER_PORT")
    ] = 3000
    public_url: Annotated[
        str,
        _doc(
            "URL that the engine gives to clients. Empty: built from PUBLIC_IPADDR and"
            " VAST_TCP_PORT_<port>, or from host and port where those are unset."
        ),
    ] = ""
    id: Annotated[int, _doc("The instance's id, sent in every report.", "CONTAINER_ID")] = 0
    http_port: Annotated[
        int,
        _doc(
            "Port of 127.0.0.1 where the model server may call /session/end over plain HTTP;"
            " 0: none; -1: where a worker.py is used, the port after worker.port.",
            "WORKER_HTTP_PORT",
            ge=-1,
            le=65535,
        ),
    ] = -1
    processes: Annotated[int, _doc("Ingress processes sharing the client port.", ge=1, le=64)] = 1
    admin_host: Annotated[str, _doc("Address of /healthz, /readyz and /metrics.")] = "127.0.0.1"
    admin_port: Annotated[
        Port, _doc("Port of /healthz, /readyz and /metrics; 0 picks a free one.")
    ] = 3002
    state_dir: Annotated[
        str,
        _doc(
            "Directory for the run lock, logs and unsent reports; one worker per directory."
            " Empty: $XDG_STATE_HOME/lighterman or ~/.local/state/lighterman."
        ),
    ] = ""
    update_file: Annotated[
        str, _doc("Written when the engine asks for an update (POST /pyworker/update).")
    ] = "/.force_update"
    drain_s: Annotated[
        Seconds, _doc("Seconds that running requests may take to finish on stop.")
    ] = 30.0
    log_format: Annotated[
        Literal["text", "json"], _doc("Log lines for people, or one JSON object a line.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _doc("Least severe line that is logged.")
    ] = "info"


class TlsSettings(Section, frozen=True):
    """TLS on the client port. TLS 1.2 and newer."""

    enabled: Annotated[bool, _doc("Serve HTTPS instead of HTTP.", "USE_SSL")] = False
    cert: Annotated[str, _doc("PEM file with the certificate chain.")] = "/etc/instance.crt"
    key: Annotated[str, _doc("PEM file with the private key.")] = "/etc/instance.key"


class AuthSettings(Section, frozen=True):
    """Who may send requests."""

    mode: Annotated[
        Literal["signature", "none"],
        _doc(
            "'signature': the engine signed auth_data. 'none': everyone who reaches the port"
            " may use the model (UNSECURED=true means the same)."
        ),
    ] = "signature"
    scheme: Annotated[
        Literal["any", "url", "2024"],
        _doc(
            "Which signature counts: over the url (today's), over all of auth_data"
            " (2024's), or either."
        ),
    ] = "any"
    check_url: Annotated[
        bool, _doc("Refuse a signature that was made for another worker's URL.")
    ] = True
    replay_window: Annotated[
        int, _doc("How far behind the newest reqnum a 2024 signature may be.", ge=1, le=100_000)
    ] = 100
    cache_entries: Annotated[
        int, _doc("Verified (url, signature) pairs that are remembered.", ge=1, le=1_000_000)
    ] = 4096


class EngineSettings(Section, frozen=True):
    """The serverless engine that routes clients here and takes the reports."""

    addresses: Annotated[
        list[str],
        _doc(
            "Base URLs, tried in order until one accepts. REPORT_ADDR separates them by commas.",
            "REPORT_ADDR",
        ),
    ] = []
    local_port: Annotated[
        Port, _doc("Port of the local engine that runs when no address is given; 0: a free one.")
    ] = 3100
    token: Annotated[
        str, _doc("The secret mtoken of every report. Never logged.", "MASTER_TOKEN", secret=True)
    ] = ""
    version: Annotated[str, _doc("The version field of every report.", "PYWORKER_VERSION")] = "0"
    report_every_s: Annotated[
        float, _doc("Seconds between reports while nothing changes.", ge=1, le=600)
    ] = 10.0
    timeout_s: Annotated[float, _doc("Seconds that one post may take.", gt=0, le=600)] = 10.0
    tries: Annotated[int, _doc("Posts to one address before the next is tried.", ge=1, le=100)] = 3
    retry_s: Annotated[Seconds, _doc("Seconds between two tries.")] = 2.0
    beacon_s: Annotated[
        float,
        _doc(
            "Seconds that a worker that cannot start goes on telling so, every 10 s, before it"
            " exits. 0: it tells once.",
            ge=0,
            le=604_800,
        ),
    ] = 0.0


class ModelSettings(Section, frozen=True):
    """The model server: how it is started, reached and judged."""

    command: Annotated[
        list[str],
        _doc("Command line that starts it. Empty: something else starts it, we watch its url."),
    ] = []
    env: Annotated[dict[str, str], _doc("Variables added to its environment.")] = {}
    cwd: Annotated[str, _doc("Directory that it starts in. Empty: ours.")] = ""
    url: Annotated[
        str, _doc("Base URL that it answers on: http://host:port, or unix:///path of a socket.")
    ] = ""
    name: Annotated[str, _doc("Name of the model, for people.", "MODEL_NAME")] = ""
    lifecycle: Annotated[
        bool, _doc("It has loaded when the lifecycle of worker.py was entered; set by that file.")
    ] = False
    health: Annotated[
        str,
        _doc(
            "Path, or http URL, that answers 2xx when it is well. Empty: none.",
            "MODEL_HEALTH_ENDPOINT",
        ),
    ] = ""
    ready_log: Annotated[
        list[str], _doc("It has loaded when a log line contains one of these.")
    ] = []
    error_log: Annotated[
        list[str], _doc("It is in error when a log line contains one of these.")
    ] = []
    info_log: Annotated[
        list[str], _doc("Log lines that contain one of these are shown among ours.")
    ] = []
    log_file: Annotated[
        str,
        _doc("Its log: written by us when command is set, followed when not.", "MODEL_LOG"),
    ] = ""
    start_timeout_s: Annotated[
        float, _doc("Seconds that it may take to load before it is restarted.", gt=0)
    ] = 3600.0
    stop_timeout_s: Annotated[Seconds, _doc("Seconds between SIGTERM and SIGKILL.")] = 10.0
    stall_timeout_s: Annotated[
        float,
        _doc(
            "It is restarted when its probe fails and no running request made progress"
            " for this long.",
            gt=0,
        ),
    ] = 60.0
    probe_every_s: Annotated[float, _doc("Seconds between health probes once ready.", gt=0)] = 5.0
    probe_timeout_s: Annotated[float, _doc("Seconds that one probe may take.", gt=0)] = 5.0
    probe_failures: Annotated[
        int, _doc("Probes that fail in a row before it counts as unhealthy.", ge=1, le=100)
    ] = 2
    gpu_watch_s: Annotated[
        Seconds,
        _doc("Seconds between looks at the GPUs; twice as long in silence is an error. 0: never."),
    ] = 5.0
    connect_timeout_s: Annotated[float, _doc("Seconds to connect to it.", gt=0)] = 5.0
    first_byte_timeout_s: Annotated[
        Seconds, _doc("Seconds from request to response head; 0: no limit.")
    ] = 0.0
    idle_timeout_s: Annotated[
        Seconds, _doc("Seconds between two pieces of a response; 0: no limit.")
    ] = 300.0
    max_connections: Annotated[
        int, _doc("Requests that may run on it at once, over all lanes.", ge=1, le=100_000)
    ] = 1024


class BenchmarkSettings(Section, frozen=True):
    """How capacity is measured before the worker counts as ready."""

    route: Annotated[str, _doc("Route to measure. Empty: no benchmark.")] = ""
    payload: Annotated[dict[str, Any], _doc("The payload that is sent each time.")] = {}
    payloads: Annotated[
        list[dict[str, Any]], _doc("Several of them: each time, one at random is sent.")
    ] = []
    sampled: Annotated[bool, _doc("worker.py makes each payload; set by that file.")] = False
    runs: Annotated[int, _doc("Rounds.", ge=1, le=1000)] = 8
    concurrency: Annotated[
        int, _doc("Requests per round, sent together; no more than its route runs.", ge=1, le=1000)
    ] = 10
    warmup: Annotated[bool, _doc("Send one request first that does not count.")] = True
    timeout_s: Annotated[float, _doc("Seconds that one round may take.", gt=0)] = 600.0
    max_perf: Annotated[
        float,
        _doc("Workload per second that is simply believed; above 0 there is no benchmark.", ge=0),
    ] = 0.0


class HooksSettings(Section, frozen=True):
    """The worker.py whose functions take part in requests, where one is used."""

    file: Annotated[
        str, _doc("Its path. Empty: none; `python -m supervisor worker.py` sets it.")
    ] = ""
    start_timeout_s: Annotated[
        float, _doc("Seconds that it may take until it runs its Worker.", gt=0)
    ] = 600.0
    timeout_s: Annotated[
        float,
        _doc(
            "Seconds that one of its functions may take for one request; a remote_function takes"
            " what it takes, and this is how long a request waits for those before it.",
            gt=0,
        ),
    ] = 30.0


class QueueSettings(Section, frozen=True):
    """Bounds of the queue."""

    max_jobs: Annotated[int, _doc("Requests that may wait.", ge=1)] = 20_000
    max_bytes: Annotated[Bytes, _doc("Bytes of request bodies that may wait or run.")] = 512 * 2**20
    max_attempts: Annotated[
        int, _doc("Times that one request may be sent to the model server.", ge=1, le=10)
    ] = 2


class LimitSettings(Section, frozen=True):
    """What one client may ask of the worker."""

    connections: Annotated[int, _doc("Open client connections per ingress process.", ge=1)] = 8192
    request_line_bytes: Annotated[int, _doc("Method, target and version.", ge=64)] = 8192
    header_bytes: Annotated[int, _doc("All header lines of one request.", ge=256)] = 65_536
    header_count: Annotated[int, _doc("Header lines of one request.", ge=1)] = 100
    body_bytes: Annotated[Bytes, _doc("One request body.")] = 64 * 2**20
    header_timeout_s: Annotated[float, _doc("Seconds for the head of a request.", gt=0)] = 20.0
    body_timeout_s: Annotated[
        float,
        _doc(
            "Seconds between two pieces of a request body; a body that takes longer as a whole has"
            " to keep up with 4 KiB a second.",
            gt=0,
        ),
    ] = 60.0
    keepalive_s: Annotated[float, _doc("Seconds that an idle connection stays open.", gt=0)] = 75.0
    write_timeout_s: Annotated[
        float, _doc("Seconds that a client may take to read anything at all.", gt=0)
    ] = 120.0
    stream_credit_bytes: Annotated[
        int, _doc("Response bytes of one stream that may be under way inside the worker.", ge=4096)
    ] = 262_144
    sessions: Annotated[
        Count, _doc("Sessions that may be open at once; 0: as many as memory allows.")
    ] = 10
    buffered_bytes: Annotated[
        Bytes, _doc("Bytes of request bodies that one ingress process holds at once.")
    ] = 512 * 2**20


class RestartSettings(Section, frozen=True):
    """How often what died is started again."""

    budget: Annotated[int, _doc("Restarts within the window before giving up.", ge=0)] = 10
    window_s: Annotated[float, _doc("Length of the window.", gt=0)] = 600.0
    first_delay_s: Annotated[
        Seconds, _doc("Delay before the second restart; the first has none.")
    ] = 0.25
    max_delay_s: Annotated[float, _doc("Longest delay.", gt=0)] = 30.0
    stable_s: Annotated[float, _doc("Seconds of READY after which the delay falls back.", gt=0)] = (
        60.0
    )
    beat_s: Annotated[float, _doc("Seconds between heartbeats.", gt=0, le=60)] = 1.0
    missed_beats: Annotated[int, _doc("Heartbeats missed before a child is killed.", ge=1)] = 3
    boot_s: Annotated[
        float, _doc("Seconds that a child of ours may take to its first beat.", gt=0)
    ] = 30.0


class Workload(Section, frozen=True):
    """How much work a request is."""

    field: Annotated[
        str,
        _doc(
            "Payload field that says it, dots for nesting (parameters.max_new_tokens). Empty: none."
        ),
    ] = ""
    default: Annotated[
        float, _doc("Workload where the field is missing or no positive number.", gt=0, le=2**40)
    ] = 100.0


class RouteSettings(Section, frozen=True):
    """One path that clients may POST to."""

    path: Annotated[str, _doc("Path on the worker.", pattern="^/")]
    upstream: Annotated[str, _doc("Path on the model server. Empty: the same.")] = ""
    workload: Annotated[Workload, _doc("How much work a request is.")] = Workload()
    max_queue_time_s: Annotated[
        float,
        _doc(
            "429 when a request would wait, or waited, longer; 0: 429 when busy; inf: never.", ge=0
        ),
    ] = 30.0
    timeout_s: Annotated[
        Seconds, _doc("Seconds from arrival to the end of the answer; 0: no limit.")
    ] = 0.0
    concurrency: Annotated[
        Count,
        _doc("0: the model server schedules; n: at most n at once. Routes with 1 share one FIFO."),
    ] = 0
    prepare: Annotated[
        bool, _doc("worker.py forms its payload or counts its work; set by that file.")
    ] = False
    hosted: Annotated[
        bool, _doc("worker.py forms its response, or is the model; set by that file.")
    ] = False
    redeliver: Annotated[
        bool, _doc("May be sent again when the model server died before it began to answer.")
    ] = True

    @property
    def lane(self) -> str:
        """Name of the FIFO: serial routes share one, every other route has its own."""
        return "serial" if self.concurrency == 1 else self.path

    @property
    def target(self) -> str:
        """Path on the model server."""
        return self.upstream or self.path


class Settings(Section, frozen=True):
    """The whole tree."""

    worker: WorkerSettings = WorkerSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    engine: EngineSettings = EngineSettings()
    model: ModelSettings = ModelSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    hooks: HooksSettings = HooksSettings()
    queue: QueueSettings = QueueSettings()
    limits: LimitSettings = LimitSettings()
    restart: RestartSettings = RestartSettings()
    route: list[RouteSettings] = []
