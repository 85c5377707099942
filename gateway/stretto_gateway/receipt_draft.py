"""Receipt of a speech response that is still in progress."""

import hashlib
from collections.abc import Mapping

from stretto_client import SpeakArguments, SpeechEvent
from stretto_client.receipt import SpeechRecorder, write_receipt


class Draft:
    """Receipt of a speech response that is still in progress."""

    def __init__(self, text: str, request_id: str, file_format: str, speed: float):
        self._text = text
        self._request_id = request_id
        self.file_format = file_format
        self._speed = speed
        self._recorder = SpeechRecorder(text, {})
        self.set_file()

    def begin(self, model: Mapping[str, str], options: SpeakArguments) -> None:
        """Record the data that determines the speech, before its first event.

        `options` may still lose pronunciations that do not occur in the text.
        """
        self._recorder = SpeechRecorder(self._text, model, self._request_id)
        self._recorder.arguments = options

    def add(self, event: SpeechEvent) -> None:
        """Add the next event."""
        self._recorder.add(event)

    def add_data(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        self._file.update(data)
        self._num_bytes += len(data)

    def set_file(self, data: bytes | bytearray = b"") -> None:
        """Replace the bytes of the file."""
        self._file = hashlib.sha256(data)
        self._num_bytes = len(data)

    def payload(self) -> bytes:
        """Return the contents of the receipt."""
        digest = self._file.hexdigest()
        return write_receipt(
            self._recorder.receipt(
                {"format": self.file_format, "bytes": self._num_bytes, "sha256": digest, "speed": self._speed}
            )
        )
