"""Plug-in seam of model families: everything that Stretto needs to serve one, found by name.

An installed package registers a family by an entry point of the group `stretto.families`. The entry point has the
family's name and refers to a `FamilyPlugin`, or to a `Family` that has no prompts. The built-in families are registered
in the same way, by the stretto package itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.families.base import Family

if TYPE_CHECKING:  # imports torch
    from stretto.codecs.refinement import Refinement


UNNAMED = ""  # `model_type` of an encoder whose `audio_config` may lack it


def lazy(reference: str, *first: Any) -> Callable[..., Any]:
    """Return a function that imports `module:name` when it is called, and calls it with `first` and its arguments.

    Processes without torch or vLLM import a plug-in's module, so it refers to other modules by name.
    """
    module, name = reference.split(":")

    def call(*arguments: Any) -> Any:
        return attrgetter(name)(import_module(module))(*first, *arguments)

    return call


@dataclass(frozen=True)
class AudioEncoder:
    """Encoder of audio input that is a part of the model.

    Attributes:
        read_format: Function from `audio_config` of a checkpoint's config.json to the encoder's `AudioFormat`.
        network: Name of the module with the encoder's network, which the engine imports: `audio_tower(audio_config)`,
            `audio_adaptor(audio_config, hidden_size)` and `embed_audio(tower, adaptor, features)`.
    """

    read_format: Callable[[Mapping[str, Any]], Any]
    network: str


@dataclass(frozen=True)
class FamilyPlugin:
    """Everything that Stretto needs to serve one model family. All callables import lazily.

    Attributes:
        name: Name of the family, as in `speech_family` of a checkpoint's config.json.
        build: Function from `speech_vocabulary` in config.json, or None for the published one, to the family.
        open_template: Function from family, folder of the checkpoint, codec and torch device to the `Template` of
            prompts; None if the family has no prompts.
        text_codec: Function from family and folder of the checkpoint to the `TextCodec` of a family without a
            tokenizer; None if its text is not readable.
        convert: Name of the module that converts releases (a `Published`); None if there is none.
        architectures: Classes of models that vLLM lacks, as "module:Class" by the name in config.json.
        audio_encoders: Encoders inside the model, by `model_type` of `audio_config` in config.json, or `UNNAMED`.
        load_refinement: Function from the folder `refinement/` of a checkpoint and torch device to the `Refinement`
            that fills in codebooks of whole utterances; None if the language model generates all of them.
    """

    name: str
    build: Callable[[Mapping[str, Any] | None], Family]
    open_template: Callable[..., Any] | None = None
    text_codec: Callable[..., Any] | None = None
    convert: str | None = None
    architectures: Mapping[str, str] = field(default_factory=dict)
    audio_encoders: Mapping[str, AudioEncoder] = field(default_factory=dict)
    load_refinement: "Callable[[Path, str], Refinement] | None" = None
