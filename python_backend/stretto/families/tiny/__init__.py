"""The bundled model, `tiny`."""

import json
from pathlib import Path

from stretto.family.plugin import FamilyPlugin, lazy
from stretto_contract.speech_checks import Pace, SignalLimits

PACE = Path(__file__).with_name("pace.json")  # measured by `python -m benchmarks.pace`

PLUGIN = FamilyPlugin(
    name="tiny",
    build=lazy("stretto.families.tiny.family:build"),
    open_template=lazy("stretto.families.tiny.prompt:open_template"),
    text_codec=lazy("stretto.families.tiny.prompt:open_text_codec"),
    # Measured in 1,500 replies. Those of 20 units and more take 0.027 to 0.066 s a unit. None has more than 0.66 s of
    # silence or 0.18 s of steady sound, and one in 200 ends less than 10 dB below its loudest sound.
    signals=SignalLimits(
        silence_s=1.2,
        hum_s=0.6,
        end_db=10.0,
        least_unit_s=0.025,
        most_unit_s=0.075,
        pace=Pace(**json.loads(PACE.read_text())),
    ),
)
