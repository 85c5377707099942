"""PersonaPlex (NVIDIA): Moshi rows, preceded by prompt frames that set the voice and the role.

    frames          voice V     silence 6   role R      silence 6   then the user's audio
    text            PAD         PAD         its tokens  PAD         sampled
    model's codes   recording   SILENCE     SILENCE     SILENCE     sampled
    user's codes    SINE        SINE        SINE        SINE        given

The last prompt row generates the first frame of the reply. The delayed codebooks of that frame follow one row later, so
the row after the prompt still carries the delayed codes of the silence. A published voice consists of vectors, one for
each of its rows, which the checkpoint stores as additional rows of the embedding table. Paper:
https://arxiv.org/abs/2602.06053. The numbers come from the authors' code for `nvidia/personaplex-7b-v1`.
"""

import string
from dataclasses import dataclass, replace

from stretto.family.base import Family, builder
from stretto_contract.voice_details import VoiceDetails
from stretto_kyutai.moshi.family import MoshiVocabulary, moshi

NAME = "personaplex"
NUM_CODEBOOKS = 8
SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)  # codes of a silent frame
SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)  # codes of a frame of a 440 Hz sine wave
SILENT_FRAMES = 6  # number of silent frames after the voice and after the role: 0.5 s each
MAX_PROMPT_ROWS = 2499  # 500 rows less than the attention window
MAX_ROLE_CHARS = 1 << 15
# Names of voices without their numbers, as the authors explain them: https://github.com/NVIDIA/personaplex.
NAMED = {
    "natf": VoiceDetails(gender="female", description="natural, as in a conversation"),
    "natm": VoiceDetails(gender="male", description="natural, as in a conversation"),
    "varf": VoiceDetails(gender="female", description="one of the more varied voices"),
    "varm": VoiceDetails(gender="male", description="one of the more varied voices"),
}


@dataclass(frozen=True)
class PublishedVoice:
    """Published voice of V frames.

    Attributes:
        name: Name in lower case.
        num_vectors: Number of rows that are vectors, V - 1.
        frames: Published text ids and codes of the last 1 + D frames, where D is the largest delay. They are carried by
            the row after the vectors and, on delayed codebooks, by later rows. Ids that no such row carries are 0.
    """

    name: str
    num_vectors: int
    frames: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PersonaPlexVocabulary(MoshiVocabulary):
    """Moshi ids, followed by one id for each vector of the voices. The first voice is the default one."""

    voices: tuple[PublishedVoice, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_codebooks != NUM_CODEBOOKS or self.codebook_size <= max(*SILENCE, *SINE):
            raise ValueError(f"expected {NUM_CODEBOOKS} codebooks with the codes of silence, got {self}")
        if max(self.delays) > SILENT_FRAMES:
            raise ValueError(f"expected delays of at most {SILENT_FRAMES} rows, got {self.delays}")
        size = 1 + max(self.delays), 1 + 2 * self.num_codebooks
        for voice in self.voices:
            if voice.num_vectors < 1 or {len(voice.frames), *map(len, voice.frames)} - {*size}:
                expected = f"at least one vector, and {size[0]} frames of {size[1]} ids"
                got = f"{voice.num_vectors} vectors, and frames of {[*map(len, voice.frames)]} ids"
                raise ValueError(f"voice {voice.name}: expected {expected}, got {got}")

    @property
    def vocab_size(self) -> int:
        return self.codes_end + sum(voice.num_vectors for voice in self.voices)

    @property
    def user_ids_before(self) -> tuple[int, ...]:
        return tuple(first + code for first, code in zip(self.first_codes[self.num_codebooks :], SINE, strict=True))

    def vectors(self, name: str) -> range:
        """Return the ids of a voice's vectors."""
        begin = self.codes_end
        for voice in self.voices:
            if voice.name == name:
                return range(begin, begin + voice.num_vectors)
            begin += voice.num_vectors
        raise KeyError(name)


def personaplex(vocabulary: PersonaPlexVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    base = moshi(vocabulary)
    return replace(
        base,
        name=NAME,
        tasks=tuple(replace(task, system=("text", "audio")) for task in base.tasks),
        voices=tuple(voice.name for voice in vocabulary.voices),
        voice_details={
            voice.name: details
            for voice in vocabulary.voices
            if (details := NAMED.get(voice.name.rstrip(string.digits)))
        },
        max_text_chars=MAX_ROLE_CHARS,
    )


build = builder(PersonaPlexVocabulary, personaplex)
