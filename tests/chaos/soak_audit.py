"""Pure: whether every request of a soak had one possible outcome, and every unit is accounted.

What dies takes with it what only it knew, and this says exactly what that can be:

- ingress alone knows of a request until it writes a batch of its accounts down, every 0.1 s. A
  request that touches the last ``BATCH_S`` of an ingress may have no row, or one that says
  Cancelled although its client was answered.
- the adapter knows the same of its sessions.
- the reporter may die between an answer of the engine and writing that down: what the last post
  before its death told may be told twice. Such rows and sums are counted apart.

Anything else that does not add up is a fault. Sums whose parts are uncertain are checked against
every sum that they can make: the workloads are drawn so that few of them are possible.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.soak_client import Seen
from tests.chaos.soak_harm import Death
from tests.chaos.soak_mix import SESSION_LIFETIME_S

#: A batch leaves every 0.1 s; the rest is a loaded machine's.
BATCH_S = 0.75
#: From an answer of the engine to the commit of it, on a loaded machine.
COMMIT_S = 0.75
#: A death is felt until its peers have noticed.
FELT_S = 1.0
MAX_ATTEMPTS = 2
STATES = ("served", "errored", "cancelled", "rejected")
_STATE_OF = {
    "Success": "served", "Error": "errored", "Cancelled": "cancelled", "Rejected": "rejected",
}  # fmt: skip
REFUSED = ("bad_signature", "hook_failed", "unknown_session")
REJECTED = ("queue_full", "queue_time", "model_down", "not_ready", "draining", "too_many_sessions")


@dataclass
class Told:
    """What the worker has told.

    Attributes:
        rows: entries of the engine's record of ended requests, ``received_at`` monotonic.
        statuses: entries of its record of reports, likewise.
        workload: state → amount, from /metrics.
        requests: requests that the worker says it got.
        journal: tag → times that the model server received it.
    """

    rows: list[dict[str, Any]]
    statuses: list[dict[str, Any]]
    workload: dict[str, float]
    requests: float
    journal: Counter[str]


@dataclass
class Verdict:
    """What is wrong, each as text, and what was allowed, as counts."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)
    workload: dict[str, float] = field(default_factory=dict)
    sent_work: int = 0
    #: what a death took with it: requests by outcome, and their work
    untold: Counter[str] = field(default_factory=Counter)
    untold_work: int = 0
    #: served, and told as cancelled because of a death
    told_cancelled: int = 0
    rows_told_twice: int = 0
    reports_told_twice: int = 0


Span = tuple[float, float]


def touches(spans: Iterable[Span], seen: Seen) -> int:
    """How many of them its life has touched."""
    return sum(start <= seen.ended_at and seen.began_at <= end for start, end in spans)


class Audit:
    """The judge of one soak.

    Args:
        asks: a worker.py is asked about each request: one whose client leaves meanwhile has not
            become work.
    """

    def __init__(
        self, seen: Sequence[Seen], deaths: Sequence[Death], told: Told, *, asks: bool = False
    ) -> None:
        self._asks = asks
        self._seen = seen
        self._told = told
        self.verdict = Verdict(workload=told.workload)
        self._spans: dict[str, list[Span]] = defaultdict(list)
        for death in deaths:
            role = death.name.partition("-")[0]
            self._spans[role].append((death.hurt_at, death.died_at + FELT_S))
        self._deaths = deaths
        self._forgotten = {role: self._forgets(role) for role in ("ingress", "backend_adapter")}
        self._ended_at = {
            id(each.ask.session): each.ended_at
            for each in seen
            if each.ask.kind == "end" and each.outcome in ("ok", "unknown_session")
        }
        self._rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in told.rows:
            self._rows[row["request_idx"]].append(row)

    def _forgets(self, role: str) -> list[Span]:
        """When what this role learns may die with it."""
        return [
            (death.hurt_at - BATCH_S, death.died_at + FELT_S)
            for death in self._deaths
            if death.name.startswith(role)
        ]

    def run(self) -> Verdict:
        """All of it."""
        for seen in self._seen:
            self._outcome(seen)
            self._attempts(seen)
            if seen.fault:
                where = "swapped" if seen.fault == "swapped" else "duplicated"
                getattr(self.verdict, where).append(self._name(seen))
        self._rows_twice()
        self._sums()
        self._reports()
        return self.verdict

    # ------------------------------------------------------------------ outcomes

    def _outcome(self, seen: Seen) -> None:
        reason = self._impossible(seen)
        if reason:
            self.verdict.lost.append(f"{self._name(seen)}: {reason}")

    def _impossible(self, seen: Seen) -> str:
        """Why this outcome cannot be; "" where it can."""
        outcome, kind = seen.outcome, seen.ask.kind
        ingress = touches(self._spans["ingress"], seen)
        adapter = touches(self._spans["backend_adapter"], seen)
        model = touches(self._spans["model"], seen)
        if outcome == "left":
            return ""
        if kind == "forged" and outcome == "ok":
            return "a forged signature was taken"
        if outcome in ("ok", "bad_signature"):
            return "" if (outcome == "ok") != (kind == "forged") else "it was signed"
        if outcome == "cut":
            begun = seen.status == 200 and (adapter or model)
            return "" if ingress or begun else "nothing died that it hung on"
        if outcome.endswith("model_failed"):
            enough = model + adapter >= (1 if seen.status == 200 else MAX_ATTEMPTS)
            return "" if enough and model else "the model server did not die so often"
        if outcome.endswith("adapter_down"):
            enough = adapter >= (1 if seen.status == 200 else 3)
            return "" if enough else "the adapter did not die so often"
        if outcome == "hook_failed":
            enough = touches(self._spans["hooks"], seen) >= 2
            return "" if enough else "the worker.py did not die so often"
        if outcome == "unknown_session" and kind == "end":
            return ""  # an end whose answer was cut is asked for again
        return "it has no reason"

    def _attempts(self, seen: Seen) -> None:
        """A job runs again only where something died while it ran."""
        runs = self._told.journal[seen.ask.tag] if seen.ask.tag else 0
        late = Seen(seen.ask, "", 0, "", seen.began_at, seen.ended_at + 2 * FELT_S)
        deaths = touches(self._spans["backend_adapter"], late) + touches(self._spans["model"], late)
        deaths += touches(self._spans["hooks"], late)
        if seen.ask.kind == "forged" and runs:
            self.verdict.duplicated.append(f"{self._name(seen)}: forged, and was run")
        elif runs > 1 + deaths:
            text = f"{self._name(seen)}: run {runs} times, with {deaths} deaths"
            self.verdict.duplicated.append(text)
        elif seen.outcome == "ok" and seen.ask.tag and not runs:
            self.verdict.lost.append(f"{self._name(seen)}: answered, and never ran")

    @staticmethod
    def _name(seen: Seen) -> str:
        text = f"{seen.ask.kind} {seen.ask.idx} {seen.outcome} {seen.status}"
        return f"{text} ({seen.began_at:.2f} to {seen.ended_at:.2f}) {seen.detail}".rstrip()

    # ------------------------------------------------------------------ rows and sums

    def _expected(self, seen: Seen) -> set[str]:
        """States that its account may be in; "": it may have none."""
        outcome, kind = seen.outcome, seen.ask.kind
        if kind == "forged":
            return {""}
        if outcome == "left":
            states = {"served", "cancelled", "errored", *([""] if self._asks else [])}
        elif outcome == "cut":
            states = {"served", "cancelled", "errored", "rejected", ""}
        elif outcome in REFUSED:
            return {""}
        elif outcome == "ok":
            states = {"served"}
        else:
            states = {"rejected" if outcome in REJECTED else "errored"}
        role = "ingress"
        if kind == "create":
            role = "backend_adapter"
            adapters = self._spans["backend_adapter"]
            if any(end >= seen.began_at for _, end in adapters):
                states.add("cancelled")
            states.add("served")
        if touches(self._forgotten[role], seen):
            states |= {"cancelled", ""}
        return states

    def _sums(self) -> None:
        """Law 5, from three sides: what clients sent, what rows say, what /metrics says."""
        verdict, workload = self.verdict, self._told.workload
        certain: Counter[str] = Counter()
        uncertain: list[dict[str, set[int]]] = []
        known = set()
        for seen in self._seen:
            ask = seen.ask
            if ask.kind == "end":
                continue
            expected = self._expected(seen)
            if expected != {""}:
                verdict.sent_work += ask.work
            if ask.kind == "inside":
                if len(expected) == 1:
                    certain[next(iter(expected))] += ask.work
                else:
                    uncertain.append({s: {0, ask.work} for s in expected if s})
                continue
            known.add(ask.idx)
            row = self._rows.get(ask.idx)
            state = _STATE_OF[row[0]["status"]] if row else ""
            if state not in expected:
                text = f"{self._name(seen)}: its row says {state or 'nothing'}"
                verdict.unaccounted.append(text)
            elif not state and expected != {""}:
                verdict.untold[seen.outcome] += 1
                verdict.untold_work += ask.work
            elif state == "cancelled" and seen.outcome == "ok":
                verdict.told_cancelled += 1
            if state:
                certain[state] += ask.work
            if ask.kind == "create":
                uncertain.append(self._again(seen))
        for idx in self._rows.keys() - known:
            verdict.unaccounted.append(f"a row of request {idx}, which nobody sent")
        if self._told.requests != len(self._rows):
            text = f"{self._told.requests} requests received, {len(self._rows)} have a row"
            verdict.unaccounted.append(text)
        ended = sum(workload[state] for state in STATES)
        if workload["received"] != ended:
            text = f"law 5: received {workload['received']}, ended {ended}"
            verdict.unaccounted.append(text)
        for state in STATES:
            options = [each[state] for each in uncertain if state in each]
            if not reachable(workload[state] - certain[state], options):
                verdict.unaccounted.append(
                    f"{state}: {workload[state]} told, {certain[state]} certain, and"
                    f" {len(options)} parts that do not make the difference"
                )

    def _again(self, seen: Seen) -> dict[str, set[int]]:
        """A session that outlives its adapter is work again for the next one."""
        until = self._ended_at.get(id(seen.ask.session), seen.ended_at + 2 * SESSION_LIFETIME_S)
        times = sum(
            seen.began_at <= end and start <= until for start, end in self._spans["backend_adapter"]
        )
        if seen.outcome == "too_many_sessions" or not times:
            return {}
        work = seen.ask.work
        return {"served": {0, work}, "cancelled": {n * work for n in range(times + 1)}}

    # ------------------------------------------------------------------ told twice

    def _tellers(self) -> list[Span]:
        """When a post may have been accepted whose acceptance died with the reporter."""
        return [
            (d.hurt_at - COMMIT_S, d.died_at + FELT_S) for d in self._deaths if d.name == "reporter"
        ]

    def _rows_twice(self) -> None:
        for idx, rows in self._rows.items():
            deaths = 0
            for row in rows[:-1]:
                deaths += any(a <= row["received_at"] <= b for a, b in self._tellers())
            if len(rows) == 1:
                continue
            same = len({(row["status"], row["success"]) for row in rows}) == 1
            if same and deaths == len(rows) - 1:
                self.verdict.rows_told_twice += len(rows) - 1
            else:
                times = [round(row["received_at"], 2) for row in rows]
                self.verdict.duplicated.append(f"row {idx} told {len(rows)} times, at {times}")

    def _reports(self) -> None:
        """The sums of the reports are those of the accounts, but for what was told twice."""
        last = []
        for start, end in self._tellers():
            before = [s for s in self._told.statuses if s["received_at"] <= end]
            last += [s for s in before[-1:] if s["received_at"] >= start]
        for name, state in (("cur_perf", "served"), ("rej_load", "rejected")):
            told = sum(s[name] for s in self._told.statuses)
            excess = told - self._told.workload[state]
            if not reachable(excess, [{0, int(s[name])} for s in last]):
                self.verdict.unaccounted.append(
                    f"reports say {told} {state}, the accounts {self._told.workload[state]}"
                )
            self.verdict.reports_told_twice += excess > 0
        processed = self._told.workload["received"]
        processed -= self._told.workload["cancelled"] + self._told.workload["rejected"]
        new = sum(s["new_load"] for s in self._told.statuses)
        if new < processed:
            self.verdict.unaccounted.append(f"reports say {new} new load, there was {processed}")


def reachable(amount: float, options: Sequence[set[int]]) -> bool:
    """Whether one choice from each of the options makes exactly this amount."""
    if amount < 0 or amount != int(amount):
        return False
    sums, most = 1, int(amount)
    mask = (1 << (most + 1)) - 1
    for choices in options:
        sums = _or(sums << choice for choice in choices) & mask
    return bool(sums >> most & 1)


def _or(numbers: Iterable[int]) -> int:
    made = 0
    for number in numbers:
        made |= number
    return made
