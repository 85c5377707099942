"""Interface of family plug-ins: everything that Stretto needs to serve a model family, found by name.

An installed package registers a family by an entry point of the group `stretto.families`. The entry point has the
family's name and refers to a `FamilyPlugin`, or to a `Family` if the family has no prompts. The stretto package
registers the built-in families in the same way.
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
    """Return a function that imports `module:name` when called, and calls it with `first` and its own arguments.

    Processes without torch or vLLM import a plug-in's module, so it refers to other modules by name only.
    """
    module, name = reference.split(":")

    def call(*arguments: Any) -> Any:
        return attrgetter(name)(import_module(module))(*first, *arguments)

    return call


@dataclass(frozen=True)
class AudioEncoder:
    """Audio encoder that is a part of the model.

    Attributes:
        read_format: Function that returns the encoder's `AudioFormat` for `audio_config` of a checkpoint's config.json.
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
        build: Function that returns the family for `speech_vocabulary` of config.json, or for None the published one.
        open_template: Function that returns the prompt `Template` for a family, checkpoint folder, codec and torch
            device; None if the family has no prompts.
        text_codec: Function that returns the `TextCodec` for a family without a tokenizer and a checkpoint folder; None
            if the family's text is not readable.
        convert: Name of the module that converts releases (a `Published`); None if there is none.
        architectures: Model classes that vLLM lacks, as "module:Class" by the name in config.json.
        audio_encoders: Encoders inside the model, by `model_type` of `audio_config` in config.json, or `UNNAMED`.
        load_refinement: Function that returns, for the folder `refinement/` of a checkpoint and a torch device, the
            `Refinement` that fills in codebooks after the first; None if the language model generates all of them.
    """

    name: str
    build: Callable[[Mapping[str, Any] | None], Family]
    open_template: Callable[..., Any] | None = None
    text_codec: Callable[..., Any] | None = None
    convert: str | None = None
    architectures: Mapping[str, str] = field(default_factory=dict)
    audio_encoders: Mapping[str, AudioEncoder] = field(default_factory=dict)
    load_refinement: "Callable[[Path, str], Refinement] | None" = None
