import numpy as np
import torch
from vllm.v1.worker.cpu import shm  # noqa: F401  (events of the CPU in the place of a GPU's)

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.run_slots import DeviceReadback, HostReadback
from stretto.engine.worker.slots import STATE, SlotTables
from tests.speech_families import EIGHT_STREAMS

COLUMN = STATE["audio_start"]


def tables() -> SlotTables:
    slots = SlotTables(3, SegmentRules(EIGHT_STREAMS, 64), torch.device("cpu"))
    slots.state[:, COLUMN] = -1
    return slots


def test_host_readback_is_immediate() -> None:
    slots = tables()
    readback = HostReadback(slots)
    slots.state[1, COLUMN] = 7
    assert readback.audio_starts().tolist() == [-1, 7, -1]


def test_device_readback_lags_by_the_steps_in_flight() -> None:
    for lag in (1, 2, 3):
        slots = tables()
        readback = DeviceReadback(slots, lag)
        known = []
        for step in range(6):
            known.append(readback.audio_starts()[1])
            if step == 1:
                slots.state[1, COLUMN] = 7
            readback.publish()
        assert known == [-1] * (1 + lag) + [7] * (5 - lag)


def test_slot_readback_ignores_its_previous_reply() -> None:
    slots = tables()
    readback = DeviceReadback(slots, 2)
    slots.state[1, COLUMN] = 7
    readback.publish()
    readback.place(1, -1)
    slots.state[1, COLUMN] = -1
    for _ in range(4):
        assert np.array_equal(readback.audio_starts(), [-1, -1, -1])
        readback.publish()


def test_placed_audio_start_is_visible_immediately() -> None:
    readback = DeviceReadback(tables(), 2)
    readback.place(2, 40)
    assert readback.audio_starts().tolist() == [-1, -1, 40]


def test_published_state_is_read_with_constant_lag() -> None:
    slots = tables()
    readback = DeviceReadback(slots, 2)
    known = []
    for step in range(5):
        known.append(readback.audio_starts()[1])
        if step == 1:
            slots.state[1, COLUMN] = 7
            readback.publish()
            slots.state[1, COLUMN] = 9  # of a step that is not published
    assert known == [-1, -1, -1, 7, 7]
