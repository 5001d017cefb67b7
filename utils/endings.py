"""What a piece's end leaves behind, and what sets it back before more bars. See notebook 08.

A pedal may still be down, the volume faded out, a pitch bent, the tempo slow. What is usual is the
median over the time of the last bars; of the pedal, that it is up.
"""

import mido
import numpy as np

LATE_BARS = 16  # these say what is usual
PEDAL, VOLUME, EXPRESSION, BEND, TEMPO = 64, 7, 11, "pitchwheel", "set_tempo"
SETTINGS = {PEDAL: ("value", 0), VOLUME: ("value", 100), EXPRESSION: ("value", 127),
            BEND: ("pitch", 0), TEMPO: ("tempo", 500_000)}  # and the value where a file sets none
TEMPOS = range(60_000, 15_000_001)  # microseconds a beat; any other is no tempo, see pianoroll
Events = list[list[tuple[int, mido.Message]]]  # of each track: (tick, message)


def resting(events: Events, first: int, end: int) -> list[tuple[int, int, mido.Message]]:
    """(tick, track, message) that set back all that differs from what is usual between two ticks.

    They stand at `end`, or after each later message that would undo them.
    """
    result = []
    for (_, name), found in _changes(events).items():
        attribute, usual = SETTINGS[name][0], _usual(name, found, first, end)
        before = [change for change in found if change[0] < end]
        for tick, track, message in before[-1:] + found[len(before):]:
            value = getattr(message, attribute)
            if value != usual and (name != PEDAL or value >= 64):
                back = message.copy(**{attribute: usual}, time=0)
                result.append((max(tick, end), track, back))
    return result


def usual_tempo(events: Events, first: int, end: int) -> int:
    """Microseconds a beat, the median between two ticks."""
    return _usual(TEMPO, _changes(events).get((-1, TEMPO), []), first, end)


def _changes(events: Events) -> dict[tuple, list[tuple[int, int, mido.Message]]]:
    """(tick, track, message) of all `SETTINGS`, in time, by channel and setting."""
    changes: dict[tuple, list] = {}
    for track, pairs in enumerate(events):
        for tick, message in pairs:
            name = getattr(message, "control", message.type)
            if name in SETTINGS and (name != TEMPO or message.tempo in TEMPOS):
                channel = getattr(message, "channel", -1)
                changes.setdefault((channel, name), []).append((tick, track, message))
    return {key: sorted(found, key=lambda change: change[0]) for key, found in changes.items()}


def _usual(name: int | str, changes: list, first: int, end: int) -> int:
    attribute, default = SETTINGS[name]
    if name == PEDAL:
        return 0
    ticks = np.array([0, *(tick for tick, _, _ in changes), end])
    lasted = np.diff(np.clip(ticks, first, end))
    values = np.array([default, *(getattr(message, attribute) for *_, message in changes)])
    order = np.argsort(values, kind="stable")
    middle = np.searchsorted(np.cumsum(lasted[order]), lasted.sum() / 2)
    return int(values[order[middle]])
