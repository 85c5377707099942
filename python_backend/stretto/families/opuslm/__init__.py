"""OpusLM and its dialogue model."""

from stretto.family.plugin import family_plugin, lazy

OPUSLM = family_plugin(__name__, architectures={"StrettoOlmo2ForCausalLM": f"{__name__}.model:StrettoOlmo2ForCausalLM"})
DIALOGUE = family_plugin(__name__, name="opuslm_dialogue", build=lazy(f"{__name__}.family:build_dialogue"), notes=None)
