"""An entry of an ingress in the store: renewed in time and when it is due, again after a failure, and gone at the end."""

from __future__ import annotations

import asyncio
import logging

from deployments.autoscaling.store_entry import StoreEntry
from tests.deployments.autoscaling.test_store_thread import Entries
from tests.waiting import until


async def test_a_store_that_fails_is_opened_again_and_complained_of_once(caplog):
    store, opened = Entries(), []

    def open_store() -> Entries:
        opened.append(store)
        if len(opened) < 3:
            raise ConnectionError("no head")
        return store

    def renew(found: Entries) -> None:
        found.all()
        found.put("mine", b"here")

    caplog.set_level(logging.WARNING, "ray.serve")
    task = asyncio.create_task(StoreEntry("mine", renew, open_store, "nobody is told", 0.01).run())
    await until(lambda: store.entries, 5)
    store.fails, num_opened = True, len(opened)
    await until(lambda: len(opened) > num_opened + 1, 5)
    store.fails = False
    await asyncio.sleep(0.05)
    assert [record.message for record in caplog.records] == ["nobody is told: ConnectionError: no head"]
    task.cancel()
    await until(lambda: not store.entries, 5)


async def test_without_a_period_it_is_renewed_when_it_is_due():
    store, renewed = Entries(), []

    def renew(found: Entries) -> None:
        renewed.append(0)
        found.put("mine", b"")

    entry = StoreEntry("mine", renew, lambda: store, "nobody is told")
    task = asyncio.create_task(entry.run())
    await until(lambda: len(renewed) == 1, 5)
    await asyncio.sleep(0.05)
    assert len(renewed) == 1
    entry.is_due()
    await until(lambda: len(renewed) == 2, 5)
    task.cancel()
    await until(lambda: not store.entries, 5)
    assert len(renewed) == 2
