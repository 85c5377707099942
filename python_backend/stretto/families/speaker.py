"""Second model of a family, which speaks the text that the first one generates."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Speaker:
    """Model that speaks the replies of another one, the writer.

    Attributes:
        state_layer: Decoder layer of the writer whose input the speaker reads in the rows of audio input, counted as
            transformers counts `hidden_states`: 0 for the embedded rows.
    """

    state_layer: int
