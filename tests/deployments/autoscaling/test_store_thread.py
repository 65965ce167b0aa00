"""What the policy's thread reads and writes, where the store fails, and when it ends."""

from __future__ import annotations

import gc
import threading
import time
import weakref

from cluster.scaling.inputs import IngressLoad, ScalingInputs
from deployments.autoscaling.decision_file import DecisionFile
from deployments.autoscaling.reports import encoded
from deployments.autoscaling.store import SETTINGS, STATE, report_name
from deployments.autoscaling.store_thread import StoreThread
from tests.waiting import until


class Entries:
    """A store in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.fails = False

    def put(self, name, value):
        self.entries[name] = value

    def remove(self, name):
        self.entries.pop(name, None)

    def all(self, beginning=""):
        if self.fails:
            raise ConnectionError("no head")
        return {name: value for name, value in self.entries.items() if name.startswith(beginning)}


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "scaling-store"}


def report() -> bytes:
    return encoded(ScalingInputs(IngressLoad(time.time(), 5, 0.0, 0.0, 0, 0, None, None), ()))


async def test_it_reads_and_writes_until_nobody_holds_it(tmp_path):
    store, file, before = Entries(), tmp_path / "log.jsonl", threads()
    store.entries |= {SETTINGS: b"s", STATE: b"t", report_name("a"): report(), report_name("b"): b"?"}
    holder = [StoreThread(lambda: store, DecisionFile(file))]  # type: ignore[arg-type,return-value]
    await until(lambda: holder[0].seen, 5)
    assert (holder[0].seen.settings, holder[0].seen.state) == (b"s", b"t")
    assert [inputs.ingress.num_arrived for inputs, _ in holder[0].seen.reports.values()] == [5]

    store.fails = True
    holder[0].keep({STATE: b"u"}, b"one")
    await until(file.exists, 5)
    await until(file.read_bytes, 5)
    assert store.entries[STATE] == b"u"
    seen = holder[0].seen
    store.fails = False
    store.entries[SETTINGS] = b"v"
    await until(lambda: holder[0].seen.settings == b"v", 5)
    assert seen.settings == b"s" and file.read_bytes() == b"one\n"

    held = weakref.ref(holder.pop())

    def has_ended() -> bool:
        gc.collect()
        return held() is None and threads() <= before

    await until(has_ended, 5)


async def test_a_store_that_cannot_be_opened_is_tried_again():
    tried: list[int] = []

    def open_store():
        tried.append(1)
        if len(tried) < 3:
            raise ConnectionError("no head")
        return Entries()

    thread = StoreThread(open_store)
    await until(lambda: thread.seen, 10)
    assert len(tried) == 3 and not thread.seen.reports
