"""The one typed tree of settings: what exists, its default, its unit, its bounds.

Responsible for naming every setting once. Reading them (TOML file < environment < flags, all
faults at once) is ``settings_sources.py``; nothing else in the project reads the environment.

Every field is ``Annotated[type, Meta(...)]``: ``description`` is the reference text of docs/,
the bounds are checked when the tree is read, and ``extra["env"]`` names the variable that the
platform already uses for it. Every field can also be set by ``LIGHTERMAN_<SECTION>_<FIELD>``.

It reads nothing. Bounds of what clients may ask are in ``settings_limits.py``, the base of every
section in ``settings_section.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from supervisor.settings_limits import LimitSettings as LimitSettings
from supervisor.settings_limits import QueueSettings as QueueSettings
from supervisor.settings_section import Count, Port, Seconds, doc
from supervisor.settings_section import Section as Section


class WorkerSettings(Section, frozen=True):
    """The worker itself: where it listens, what it is called, where it keeps state."""

    host: Annotated[str, doc("Address that the client port binds.")] = "0.0.0.0"
    port: Annotated[
        Port, doc("Port that clients connect to; 0 picks a free one.", "WORKER_PORT")
    ] = 3000
    public_url: Annotated[
        str,
        doc(
            "URL that the engine gives to clients. Empty: built from PUBLIC_IPADDR and"
            " VAST_TCP_PORT_<port>, or from host and port where those are unset."
        ),
    ] = ""
    id: Annotated[int, doc("The instance's id, sent in every report.", "CONTAINER_ID")] = 0
    http_port: Annotated[
        int,
        doc(
            "Port of 127.0.0.1 where the model server may call /session/end over plain HTTP;"
            " 0: none; -1: where a worker.py is used, the port after worker.port.",
            "WORKER_HTTP_PORT",
            ge=-1,
            le=65535,
        ),
    ] = -1
    processes: Annotated[int, doc("Ingress processes sharing the client port.", ge=1, le=64)] = 1
    admin_host: Annotated[str, doc("Address of /healthz, /readyz and /metrics.")] = "127.0.0.1"
    admin_port: Annotated[
        Port, doc("Port of /healthz, /readyz and /metrics; 0 picks a free one.")
    ] = 3002
    state_dir: Annotated[
        str,
        doc(
            "Directory for the run lock, logs and unsent reports; one worker per directory."
            " Empty: $XDG_STATE_HOME/lighterman or ~/.local/state/lighterman."
        ),
    ] = ""
    update_file: Annotated[
        str, doc("Written when the engine asks for an update (POST /pyworker/update).")
    ] = "/.force_update"
    drain_s: Annotated[
        Seconds, doc("Seconds that running requests may take to finish on stop.")
    ] = 30.0
    log_format: Annotated[
        Literal["text", "json"], doc("Log lines for people, or one JSON object a line.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], doc("Least severe line that is logged.")
    ] = "info"


class TlsSettings(Section, frozen=True):
    """TLS on the client port. TLS 1.2 and newer."""

    enabled: Annotated[bool, doc("Serve HTTPS instead of HTTP.", "USE_SSL")] = False
    cert: Annotated[str, doc("PEM file with the certificate chain.")] = "/etc/instance.crt"
    key: Annotated[str, doc("PEM file with the private key.")] = "/etc/instance.key"


class AuthSettings(Section, frozen=True):
    """Who may send requests."""

    mode: Annotated[
        Literal["signature", "none"],
        doc(
            "'signature': the engine signed auth_data. 'none': everyone who reaches the port"
            " may use the model (UNSECURED=true means the same)."
        ),
    ] = "signature"
    scheme: Annotated[
        Literal["any", "url", "2024"],
        doc("Which signature counts: of the url (today's), of all of auth_data (2024's), or any."),
    ] = "any"
    check_url: Annotated[
        bool, doc("Refuse a signature that was made for another worker's URL.")
    ] = True
    replay_window: Annotated[
        int, doc("How far behind the newest reqnum a 2024 signature may be.", ge=1, le=100_000)
    ] = 100
    cache_entries: Annotated[
        int, doc("Verified (url, signature) pairs that are remembered.", ge=1, le=1_000_000)
    ] = 4096
    clients: Annotated[
        dict[str, str],
        doc(
            "Strict mode: name → Ed25519 public key (base64) of each client. Each request must be"
            " signed by one of them, too, and passes once (docs/security.md). Empty: none"
            " is asked for.",
            secret=True,
        ),
    ] = {}


class EngineSettings(Section, frozen=True):
    """The serverless engine that routes clients here and takes the reports."""

    addresses: Annotated[
        list[str],
        doc(
            "Base URLs, tried in order until one accepts. REPORT_ADDR separates them by commas."
            " None, but CONTAINER_ID and MASTER_TOKEN: https://run.vast.ai.",
            "REPORT_ADDR",
        ),
    ] = []
    local_port: Annotated[
        Port, doc("Port of the local engine that runs when there is no address; 0: a free one.")
    ] = 3100
    token: Annotated[
        str, doc("The secret mtoken of every report. Never logged.", "MASTER_TOKEN", secret=True)
    ] = ""
    version: Annotated[str, doc("The version field of every report.", "PYWORKER_VERSION")] = "0"
    report_every_s: Annotated[
        float, doc("Seconds between reports while nothing changes.", ge=1, le=600)
    ] = 10.0
    timeout_s: Annotated[float, doc("Seconds that one post may take.", gt=0, le=600)] = 10.0
    tries: Annotated[int, doc("Posts to one address before the next is tried.", ge=1, le=100)] = 3
    retry_s: Annotated[Seconds, doc("Seconds between two tries.")] = 2.0
    beacon_s: Annotated[
        float,
        doc(
            "Seconds that a worker that cannot start goes on telling the engine so, every 10 s,"
            " before it exits. 0: it tells once.",
            ge=0,
            le=604_800,
        ),
    ] = 0.0


class ModelSettings(Section, frozen=True):
    """The model server: how it is started, reached and judged."""

    # a key may stand in either: a fault's text does not show what was written
    command: Annotated[
        list[str],
        doc(
            "Command line that starts it. Empty: something else does, we watch its url.",
            secret=True,
        ),
    ] = []
    env: Annotated[dict[str, str], doc("Variables added to its environment.", secret=True)] = {}
    cwd: Annotated[str, doc("Directory that it starts in. Empty: ours.")] = ""
    url: Annotated[
        str, doc("Base URL that it answers on: http://host:port, or unix:///path of a socket.")
    ] = ""
    name: Annotated[str, doc("Name of the model, for people.", "MODEL_NAME")] = ""
    lifecycle: Annotated[
        bool, doc("It has loaded when the lifecycle of worker.py was entered; set by that file.")
    ] = False
    health: Annotated[
        str,
        doc(
            "Path, or http URL, that answers 2xx when it is well. Empty: none.",
            "MODEL_HEALTH_ENDPOINT",
        ),
    ] = ""
    ready_log: Annotated[
        list[str], doc("It has loaded when a log line contains one of these.")
    ] = []
    error_log: Annotated[
        list[str], doc("It is in error when a log line contains one of these.")
    ] = []
    info_log: Annotated[
        list[str], doc("Log lines that contain one of these are shown among ours.")
    ] = []
    log_file: Annotated[
        str,
        doc("Its log: written by us when command is set, followed when not.", "MODEL_LOG"),
    ] = ""
    start_timeout_s: Annotated[
        float, doc("Seconds that it may take to load before it is restarted.", gt=0)
    ] = 3600.0
    stop_timeout_s: Annotated[Seconds, doc("Seconds between SIGTERM and SIGKILL.")] = 10.0
    stall_timeout_s: Annotated[
        float,
        doc(
            "It is restarted when its probe fails and no running request made progress"
            " for this long.",
            gt=0,
        ),
    ] = 60.0
    probe_every_s: Annotated[float, doc("Seconds between health probes once ready.", gt=0)] = 5.0
    probe_timeout_s: Annotated[float, doc("Seconds that one probe may take.", gt=0)] = 5.0
    probe_failures: Annotated[
        int, doc("Probes that fail in a row before it counts as unhealthy.", ge=1, le=100)
    ] = 2
    gpu_watch_s: Annotated[
        Seconds,
        doc("Seconds between looks at the GPUs; twice as long in silence is an error. 0: never."),
    ] = 5.0
    connect_timeout_s: Annotated[float, doc("Seconds to connect to it.", gt=0)] = 5.0
    first_byte_timeout_s: Annotated[
        Seconds, doc("Seconds from request to response head; 0: no limit.")
    ] = 0.0
    idle_timeout_s: Annotated[
        Seconds, doc("Seconds between two pieces of a response; 0: no limit.")
    ] = 300.0
    max_connections: Annotated[
        int, doc("Requests that may run on it at once, over all lanes.", ge=1, le=100_000)
    ] = 1024


class BenchmarkSettings(Section, frozen=True):
    """How capacity is measured before the worker counts as ready."""

    route: Annotated[str, doc("Route to measure. Empty: no benchmark.")] = ""
    payload: Annotated[dict[str, Any], doc("The payload that is sent each time.")] = {}
    payloads: Annotated[
        list[dict[str, Any]], doc("Several of them: each time, one at random is sent.")
    ] = []
    sampled: Annotated[bool, doc("worker.py makes each payload; set by that file.")] = False
    runs: Annotated[int, doc("Rounds.", ge=1, le=1000)] = 8
    concurrency: Annotated[
        int, doc("Requests per round, sent together; no more than its route runs.", ge=1, le=1000)
    ] = 10
    warmup: Annotated[bool, doc("Send one request first that does not count.")] = True
    timeout_s: Annotated[float, doc("Seconds that one round may take.", gt=0)] = 600.0
    max_perf: Annotated[
        float,
        doc("Workload per second that is simply believed; above 0 there is no benchmark.", ge=0),
    ] = 0.0


class HooksSettings(Section, frozen=True):
    """The worker.py whose functions take part in requests, where one is used."""

    file: Annotated[
        str, doc("Its path. Empty: none; `python -m supervisor worker.py` sets it.")
    ] = ""
    start_timeout_s: Annotated[
        float, doc("Seconds that it may take until it runs its Worker.", gt=0)
    ] = 600.0
    timeout_s: Annotated[
        float,
        doc(
            "Seconds that one of its functions may take for one request; a remote_function takes"
            " what it takes, and this is how long a request waits for those before it.",
            gt=0,
        ),
    ] = 30.0


class RestartSettings(Section, frozen=True):
    """How often what died is started again."""

    budget: Annotated[int, doc("Restarts within the window before giving up.", ge=0)] = 10
    window_s: Annotated[float, doc("Length of the window.", gt=0)] = 600.0
    first_delay_s: Annotated[
        Seconds, doc("Delay before the second restart; the first has none.")
    ] = 0.25
    max_delay_s: Annotated[float, doc("Longest delay.", gt=0)] = 30.0
    stable_s: Annotated[float, doc("Seconds of READY after which the delay falls back.", gt=0)] = (
        60.0
    )
    beat_s: Annotated[float, doc("Seconds between heartbeats.", gt=0, le=60)] = 1.0
    missed_beats: Annotated[int, doc("Heartbeats missed before a child is killed.", ge=1)] = 3
    boot_s: Annotated[
        float, doc("Seconds that a child of ours may take to its first beat.", gt=0)
    ] = 30.0


class Workload(Section, frozen=True):
    """How much work a request is."""

    field: Annotated[
        str,
        doc(
            "Payload field that says it, dots for nesting (parameters.max_new_tokens). Empty: none."
        ),
    ] = ""
    default: Annotated[
        float, doc("Workload where the field is missing or no positive number.", gt=0, le=2**40)
    ] = 100.0
    max: Annotated[
        float,
        doc(
            "Most that one request counts for: who claims more is served, and counts for this much."
            " 0: 1000 times the default.",
            ge=0,
            le=2**40,
        ),
    ] = 0.0

    @property
    def most(self) -> float:
        """Most that one request counts for."""
        return self.max or min(1000.0 * self.default, 2.0**40)


class RouteSettings(Section, frozen=True):
    """One path that clients may POST to."""

    path: Annotated[
        str, doc("Path on the worker; may end in /*, or hold {name} for a segment.", pattern="^/")
    ]
    upstream: Annotated[str, doc("Path on the model server. Empty: the same.")] = ""
    workload: Annotated[Workload, doc("How much work a request is.")] = Workload()
    max_queue_time_s: Annotated[
        float,
        doc(
            "429 when a request would wait, or waited, longer; 0: 429 when busy; inf: never.", ge=0
        ),
    ] = 30.0
    timeout_s: Annotated[
        Seconds, doc("Seconds from arrival to the end of the answer; 0: no limit.")
    ] = 0.0
    concurrency: Annotated[
        Count,
        doc("0: the model server schedules; n: at most n at once. Routes with 1 share one FIFO."),
    ] = 0
    prepare: Annotated[
        bool, doc("worker.py forms its payload or counts its work; set by that file.")
    ] = False
    hosted: Annotated[
        bool, doc("worker.py forms its response, or is the model; set by that file.")
    ] = False
    redeliver: Annotated[
        bool,
        doc("May be sent again when the model server, or our queue, died before its answer began."),
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
