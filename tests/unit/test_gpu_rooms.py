"""The rules of the GPU watch: the reader's life, the judgement of devices, the gate."""

from __future__ import annotations

import msgspec

from backend_adapter.gpu_gate import GpuGate
from backend_adapter.gpu_judge import SAME_ERROR_S, SETTLE_S, GpuJudge
from backend_adapter.gpu_reader_life import FIRST_S, KILL_AFTER_S, MAX_PAUSE_S, ReaderLife
from backend_adapter.gpu_words import Hit, KillReader, Note, Reading, StartReader
from backend_adapter.readiness import EXTERNAL
from backend_adapter.readiness_words import (
    BackendDown,
    BackendFailed,
    BackendUp,
    Probe,
    Report,
    Verdict,
)


def device(index: int = 0, **fields: object) -> Reading:
    known = {"index": index, "name": "H100", "uuid": f"uuid-{index}"}
    return Reading(**(known | fields))  # type: ignore[arg-type]


# ------------------------------------------------------------------ the judgement


def test_a_well_device_is_no_news() -> None:
    judge = GpuJudge()
    assert judge.seen([device(ecc=7, recovery=0), device(1)], 1.0) == []
    assert judge.seen([device(ecc=7, recovery=0), device(1)], 6.0) == []
    assert judge.fault == ""


def test_a_lost_device_is_a_fault_and_its_return_a_hit() -> None:
    judge = GpuJudge()
    judge.seen([device(), device(1)], 1.0)
    assert judge.seen([device(), device(1, error="GPU is lost", fatal=True)], 6.0) == []
    assert judge.fault == "GPU 1 (H100): GPU is lost"
    assert judge.seen([device(), device(1)], 11.0) == [
        Hit("GPU 1 (H100): it is back, and what ran on it is dead")
    ]
    assert judge.fault == ""


def test_an_error_that_kills_nothing_leaves_nothing() -> None:
    judge = GpuJudge()
    judge.seen([device()], 1.0)
    judge.seen([device(error="Unknown Error")], 6.0)
    assert judge.fault == "GPU 0 (H100): Unknown Error"
    assert judge.seen([device()], 11.0) == []
    assert judge.fault == ""


def test_a_device_that_is_not_shown_any_more() -> None:
    judge = GpuJudge()
    judge.seen([device(), device(1)], 1.0)
    judge.seen([device()], 6.0)
    assert judge.fault == "GPU 1 (H100): it is not there any more"
    assert judge.seen([device(), device(1)], 11.0) == [
        Hit("GPU 1 (H100): it is back, and what ran on it is dead")
    ]


def test_a_device_that_is_gone_is_unwell_and_not_the_one_that_has_its_index_now() -> None:
    judge = GpuJudge()
    first, second = device(), device(1)
    judge.seen([first, second], 1.0)
    judge.seen([first], 6.0)
    assert judge.unwell([first]) == [(1, "H100")]
    judge.seen([first, second], 11.0)
    moved = msgspec.structs.replace(second, index=0)
    judge.seen([moved], 16.0)
    assert judge.fault == "GPU 0 (H100): it is not there any more"
    assert judge.unwell([moved]) == []


def test_a_lost_device_without_a_uuid_is_the_one_of_its_index() -> None:
    judge = GpuJudge()
    judge.seen([device(), device(1)], 1.0)
    judge.seen([device(), Reading(index=1, error="Unknown Error")], 6.0)
    assert judge.fault == "GPU 1 (H100): Unknown Error"


def test_a_device_that_never_told_its_name() -> None:
    judge = GpuJudge()
    judge.seen([device(), Reading(index=1, error="Unknown Error")], 1.0)
    assert judge.fault == "GPU 1: Unknown Error"
    judge.seen([device(), device(1)], 6.0)
    assert judge.fault == ""


def test_the_driver_asks_for_a_reset_or_for_less() -> None:
    judge = GpuJudge()
    judge.seen([device(recovery=4)], 1.0)
    assert judge.fault == ""
    judge.seen([device(recovery=1)], 6.0)
    assert judge.fault == "GPU 0 (H100): it must be reset before it can be used again"
    assert isinstance(judge.seen([device(recovery=0)], 11.0)[0], Hit)


def test_uncorrectable_errors_count_from_the_first_reading_on() -> None:
    judge = GpuJudge()
    assert judge.seen([device(ecc=7)], 1.0) == []
    assert judge.seen([device(ecc=8)], 6.0) == [Hit("GPU 0 (H100): 1 uncorrectable ECC error")]
    assert judge.seen([device(ecc=10)], 6.0 + SAME_ERROR_S) == [
        Hit("GPU 0 (H100): 2 uncorrectable ECC errors")
    ]
    assert judge.seen([device(ecc=0)], 50.0) == []  # the driver was loaded anew
    assert judge.seen([device(ecc=1)], 60.0) == [Hit("GPU 0 (H100): 1 uncorrectable ECC error")]
    assert judge.seen([device()], 90.0) == []


def test_one_error_seen_in_two_ways_is_one() -> None:
    judge = GpuJudge()
    judge.seen([device(ecc=0)], 1.0)
    assert judge.xid("uuid-0", 94, 2.0) == [Hit("GPU 0 (H100): Xid 94: contained ECC error")]
    assert judge.seen([device(ecc=1)], 3.0) == []
    assert judge.xid("uuid-0", 48, 4.0) == []
    assert judge.fault == ""


def test_an_xid_that_breaks_a_device_lasts_until_the_driver_says_otherwise() -> None:
    judge = GpuJudge()
    judge.seen([device(ecc=0)], 1.0)
    assert judge.xid("uuid-0", 95, 2.0) == []
    words = "GPU 0 (H100): Xid 95: uncontained ECC error"
    assert judge.fault == words
    assert judge.seen([device(recovery=0, ecc=1)], 2.0 + SETTLE_S / 2) == []
    assert judge.unwell([device()]) == [(0, "H100")]
    judge.seen([device()], 100.0)
    assert judge.fault == words, "it does not say, so nothing has changed"
    judge.seen([device(recovery=1)], 110.0)
    assert judge.fault == (f"{words}; GPU 0 (H100): it must be reset before it can be used again")
    assert judge.seen([device(recovery=0)], 120.0) == [
        Hit("GPU 0 (H100): it is back, and what ran on it is dead")
    ]
    assert judge.fault == "" and not judge.unwell([device()])


def test_other_xids_and_unknown_devices_are_notes() -> None:
    judge = GpuJudge()
    judge.seen([device()], 1.0)
    assert judge.xid("uuid-0", 31, 2.0) == [Note("GPU 0 (H100): Xid 31")]
    judge.seen([device(), device(1)], 3.0)
    assert judge.xid("else", 79, 4.0) == [Note("a GPU that is not known: Xid 79")]
    assert judge.fault == ""


def test_where_there_is_one_gpu_an_xid_is_its_own() -> None:
    judge = GpuJudge()
    judge.seen([device()], 1.0)
    assert judge.xid("", 79, 2.0) == []
    assert judge.fault == "GPU 0 (H100): Xid 79: GPU has fallen off the bus"


def test_a_note_is_said_once() -> None:
    judge = GpuJudge()
    assert judge.seen([device(notes=["rows"])], 1.0) == [Note("GPU 0 (H100): rows")]
    assert judge.seen([device(notes=["rows"])], 6.0) == []


# ------------------------------------------------------------------ the reader's life


def ticks(life: ReaderLife, begin: int, end: int) -> list[object]:
    return [command for now in range(begin, end) for command in life.tick(float(now))]


def test_silence_is_a_fault_until_the_next_word() -> None:
    life = ReaderLife(5.0)
    assert life.start(0.0) == [StartReader()]
    assert ticks(life, 1, int(FIRST_S)) == [] and life.silent == ""
    ticks(life, int(FIRST_S), int(FIRST_S) + 1)
    assert life.silent == f"NVML did not answer in {FIRST_S:g} s"
    life.heard(61.0)
    assert life.silent == ""
    ticks(life, 62, 71)
    assert life.silent == ""
    ticks(life, 71, 72)
    assert life.silent == "NVML did not answer in 10 s"


def test_a_silent_reader_is_ended_and_followed_by_one_at_a_time() -> None:
    life = ReaderLife(5.0)
    life.start(0.0)
    life.heard(1.0)
    end = 1 + 10 + int(KILL_AFTER_S)
    assert ticks(life, 2, end) == []
    assert ticks(life, end, end + 1) == [KillReader()]
    assert ticks(life, end + 1, end + 300) == [], "it does not die, so there is no second one"
    life.ended("signal 9", end + 300.0)
    assert life.gone == "" and life.silent
    assert ticks(life, end + 300, end + 305) == []
    assert ticks(life, end + 305, end + 306) == [StartReader()]
    life.gave_up("Driver Not Loaded", absent=True)
    assert life.silent == "" and life.gone == "Driver Not Loaded" and not life.over


def test_the_pauses_double_up_to_a_bound() -> None:
    life = ReaderLife(5.0)
    life.start(0.0)
    life.heard(1.0)
    now, pauses = 2.0, []
    for _ in range(6):
        life.ended("exit 1", now)
        assert life.gone == "exit 1"
        began = now
        while not life.tick(now):
            now += 1.0
        pauses.append(now - began)
    assert pauses == [5.0, 10.0, 20.0, 40.0, MAX_PAUSE_S, MAX_PAUSE_S]
    life.heard(now)
    assert life.gone == ""
    life.ended("exit 1", now)
    assert life.tick(now + 4.0) == ()
    assert life.tick(now + 5.0) == [StartReader()]


def test_where_there_is_nothing_there_is_no_second_try() -> None:
    life = ReaderLife(5.0)
    life.start(0.0)
    life.gave_up("NVML Shared Library Not Found", absent=True)
    life.ended("exit 0", 1.0)
    assert life.over and life.gone == "NVML Shared Library Not Found"
    assert ticks(life, 2, 200) == []


def test_time_in_which_we_did_not_run_is_not_silence() -> None:
    life = ReaderLife(5.0)
    life.start(0.0)
    life.heard(1.0)
    assert life.tick(500.0) == () and life.silent == ""
    assert ticks(life, 501, 510) == [] and life.silent == ""
    ticks(life, 510, 511)
    assert life.silent


# ------------------------------------------------------------------ the gate

UP, WELL = BackendUp(), Verdict(1, True, True, False, "")
GOOD = Report(1, True, "", 2.0)


def ready_gate() -> GpuGate:
    gate = GpuGate(60.0)
    gate.model_state("ready", 1)
    assert gate.passes([UP, WELL, GOOD, Probe()]) == [UP, WELL, GOOD, Probe()]
    return gate


def test_without_trouble_everything_passes() -> None:
    gate = ready_gate()
    assert gate.passes([Probe()]) == [Probe()]
    assert gate.fault("") == []
    assert not gate.pending and gate.look(0, 0.0, 1.0) == []


def test_a_fault_holds_requests_and_restarts_nothing() -> None:
    gate = ready_gate()
    assert gate.fault("lost") == [
        BackendDown("lost"),
        Verdict(1, True, False, False, "lost"),
        Report(1, False, "lost", 2.0),
    ]
    assert gate.fault("lost") == []
    assert gate.passes([Report(1, False, "a line", 2.0)]) == [Report(1, False, "lost; a line", 2.0)]
    assert gate.look(0, 0.0, 1000.0) == []
    assert gate.passes([GOOD]) == [Report(1, False, "lost", 2.0)]
    assert gate.fault("") == [UP, WELL, GOOD]


def test_a_model_server_that_hangs_because_its_gpu_has_gone_is_left_alone() -> None:
    gate = ready_gate()
    gate.fault("lost")
    wedged = Verdict(1, False, False, True, "stalled")
    assert gate.passes([wedged]) == [Verdict(1, False, False, False, "lost")]
    assert wedged in gate.fault(""), "now it helps"
    assert gate.hit("ecc", 10.0)[1] == Verdict(1, False, False, True, SAYS), "it is no better"


def test_a_fault_does_not_hide_the_end() -> None:
    gate = ready_gate()
    gate.fault("lost")
    failed = BackendFailed("it will not be started again")
    assert gate.passes([failed]) == [failed]


def test_before_anything_is_known_a_fault_says_nothing() -> None:
    gate = GpuGate(60.0)
    assert gate.fault("lost") == []
    assert gate.trouble == "lost"
    gate.model_state("starting", 1)
    assert gate.passes([BackendDown("loading"), Report(1, False, "", 0.0)]) == [
        BackendDown("lost"),
        Report(1, False, "lost", 0.0),
    ]


SAYS = "ecc; what ran on it must be started again"
RESTART = Verdict(1, True, False, True, SAYS)


def test_a_hit_waits_for_what_runs_then_restarts() -> None:
    gate = ready_gate()
    assert gate.hit("ecc", 10.0) == [
        BackendDown(SAYS),
        Verdict(1, True, False, False, SAYS),
        Report(1, False, SAYS, 2.0),
    ]
    assert gate.hit("again", 11.0) == [], "one restart for both"
    assert gate.look(2, 60.0, 69.0) == []
    assert gate.look(0, 60.0, 70.0) == [RESTART]
    assert not gate.pending
    gate.model_state("unhealthy", 1)
    assert gate.passes([]) == []
    gate.model_state("backoff", 1)
    died = [BackendDown("it died"), Report(1, False, "it died", 2.0)]
    assert gate.passes(died) == died
    assert gate.trouble == ""
    assert gate.hit("late", 12.0) == [], "it is dead already"
    gate.model_state("starting", 2)
    gate.model_state("ready", 2)
    second = [UP, Verdict(2, True, True, False, ""), Report(2, True, "", 3.0)]
    assert gate.passes(second) == second


def test_a_hit_does_not_wait_for_what_makes_no_progress() -> None:
    gate = ready_gate()
    gate.hit("ecc", 10.0)
    assert gate.look(2, 30.0, 89.9) == []
    assert gate.look(2, 30.0, 90.0) == [RESTART]


def test_a_hit_waits_for_the_end_of_a_fault() -> None:
    gate = ready_gate()
    gate.fault("lost")
    assert gate.hit("ecc", 10.0)[1] == Verdict(1, True, False, False, f"lost; {SAYS}")
    assert gate.look(0, 0.0, 20.0) == []
    assert gate.fault("") == [
        BackendDown(SAYS),
        Verdict(1, True, False, False, SAYS),
        Report(1, False, SAYS, 2.0),
    ]
    assert gate.look(0, 0.0, 21.0) == [RESTART]
    assert gate.fault("lost")[1] == Verdict(1, True, False, False, f"lost; {SAYS}")


def test_a_new_process_is_not_hit_by_what_hit_the_last() -> None:
    gate = ready_gate()
    gate.hit("ecc", 10.0)
    gate.model_state("starting", 2)
    assert gate.trouble == ""


def test_a_model_server_of_somebody_else_is_well_when_it_was_away() -> None:
    gate = GpuGate(60.0)
    gate.model_state(EXTERNAL, 0)
    up = [UP, Verdict(0, True, True, False, ""), Report(0, True, "", 2.0)]
    assert gate.passes(up) == up
    gate.hit("ecc", 10.0)
    assert gate.look(0, 0.0, 20.0) == [], "nobody could start it again"
    assert gate.passes([up[1]]) == [], "it answers on, which says nothing"
    assert gate.passes([Verdict(0, False, False, False, "no answer")]) == [
        Verdict(0, False, False, False, SAYS)
    ]
    assert gate.passes(up) == up
