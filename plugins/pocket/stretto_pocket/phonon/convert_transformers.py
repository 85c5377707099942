"""Conversion of Phonon releases in transformers' layout, whose codec is in a folder of its own.

`GradiumPhononTTSForConditionalGeneration.save_pretrained` writes `config.json`, and `model.safetensors` under Gradium's
names or, with `save_original_format=False`, under transformers' own. The codec is a `PocketTTSAudioTokenizerModel`.
Voices are files as in Gradium's layout.
"""

from dataclasses import replace
from typing import Any

from stretto.family.conversion import Contents, Converted, Release, integer
from stretto_pocket.phonon.convert import (
    CONDITIONERS,
    DROPPED,
    DURATION,
    NUM_SPEAKERS,
    SEANET,
    STACK,
    TEXT,
    folded_shapes,
    pocket_config,
)
from stretto_pocket.phonon.convert import convert as convert_authors
from stretto_pocket.pocket_tts import convert_layout
from stretto_pocket.pocket_tts.convert import Shape
from stretto_pocket.pocket_tts.convert_layout import TABLE, TransformersRelease, check_values

__all__ = ["EMBEDDINGS", "GENERATION", "IS_BARE", "IS_FLOAT32", "convert"]

IS_BARE = True  # the tokenizer may be of any kind
IS_FLOAT32 = True  # no other dtype is accepted
EMBEDDINGS = TABLE
GENERATION = convert_layout.GENERATION
NAMES = (
    (f"{TEXT}embed.", "model.embed_tokens."),
    (f"{CONDITIONERS}speaker_wavs.output_proj.", "model.audio_prompt_proj."),
    (f"{NUM_SPEAKERS}embed.", "model.num_speakers_embed."),
    (f"{NUM_SPEAKERS}output_proj.", "model.num_speakers_proj."),
    (f"{DURATION}output_proj.", "model.duration_delta_proj."),
)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including all voices in the release folder."""
    if "flow_lm" in contents.config:  # Gradium's config.json, with the name of the class
        return convert_authors(release, contents)
    layout = TransformersRelease(release, contents, "gelu", NAMES, {})
    config = authors_config(layout)
    pocket = pocket_config(config, layout.tensors)
    layout.check_language_model(pocket, folded_shapes(Shape(pocket), config, layout.tensors))
    converted = convert_authors(release, replace(contents, config=config, tensors=layout.tensors))
    return layout.renamed(converted, (*DROPPED, "mimi."))


def authors_config(layout: TransformersRelease) -> dict[str, Any]:
    """Return the config.json of the same release in Gradium's layout."""
    config = layout.config
    mimi = layout.mimi()
    flow = layout.config["flow_head_config"]
    width = integer(config, "hidden_size")
    heads = integer(config, "num_attention_heads")
    same = {"num_key_value_heads": heads, "head_dim": width // heads, "num_speakers": 1, "duration_delta": 0.0}
    check_values(config, same, "config.json")
    layout.flow_type()
    rows = integer(config, "num_speakers_vocab_size") - 1
    return {
        "flow_lm": {
            "d_model": width,
            "lut_dim": width,
            "num_heads": heads,
            "num_layers": integer(config, "num_hidden_layers"),
            "dim_feedforward": integer(config, "intermediate_size"),
            "max_period": layout.theta,
            "n_bins": integer(config, "vocab_size") - 1,
            "flow_dim": integer(flow, "hidden_size"),
            "flow_depth": integer(flow, "num_hidden_layers"),
            "time_rms_norm": "rms",
        },
        "mimi": {
            "channels": 1,
            "sample_rate": mimi["sample_rate"],
            "frame_rate": mimi["frame_rate"],
            **{name: mimi["seanet"][name] for name in SEANET},
            **{f"transformer_{name}": mimi["transformer"][name] for name in STACK},
            "quantizer_dimension": mimi["quantizer"]["dimension"],
            "quantizer_output_dimension": mimi["quantizer"]["output_dimension"],
        },
        "lsd_decode_steps": layout.num_steps,
        "eos_threshold": layout.end_threshold,
        "conditioners": [
            {
                "name": "num_speakers",
                "type": "lut",
                "lut": {"n_bins": rows, "dim": integer(config, "num_speakers_embedding_dim")},
            },
            {
                "name": "duration_delta",
                "type": "continuous",
                "continuous": {"dim": integer(config, "duration_delta_embedding_dim")},
            },
        ],
    }
