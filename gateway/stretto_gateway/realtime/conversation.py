"""Items of a realtime conversation, and their conversion to the server's turns."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stretto_client import Word
from stretto_gateway.admission import Held
from stretto_gateway.answers import ApiError, mismatch
from stretto_gateway.encoding import DEFAULT_RATE, wav_header
from stretto_gateway.socket_session import new_id

Kind = Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]
MAX_CHAR_BYTES = 4
ITEM_BYTES = 1024  # memory of an item, not counting its content
PART_BYTES = 256  # the same for a part
ROOT = "root"  # OpenAI's name for the position before all items


@dataclass
class ItemPart:
    """Text, pcm16 at 24 kHz with its transcript as `text`, or an image. The audio of replies is not stored.

    Attributes:
        kind: OpenAI's type of the part.
        url_head: Part of the image's `data:` URL before the base64.
    """

    kind: Kind
    text: str | None = ""
    pcm: bytes = b""
    image: bytes = b""
    url_head: str = ""

    def record(self, write: Callable[[bytes], bytes] | None) -> dict[str, Any]:
        """Return the part as OpenAI's object; `write` converts its audio, and None leaves out audio and images."""
        if self.kind == "input_image":
            url = {} if write is None else {"image_url": self.url_head + base64.b64encode(self.image).decode()}
            return {"type": self.kind} | url
        if not self.kind.endswith("audio"):
            return {"type": self.kind, "text": self.text}
        sound = {"audio": base64.b64encode(write(self.pcm)).decode()} if write is not None and self.pcm else {}
        return {"type": self.kind, "transcript": self.text} | sound


@dataclass
class Item:
    """Message in a conversation (OpenAI's `conversation.item`).

    Attributes:
        codes: Codes [S, T] of a spoken reply, in pieces.
        played_samples: Number of samples that were played to the user; None for all.
        num_bytes: Accounted memory, once the item is in a conversation.
    """

    role: str
    parts: list[ItemPart]
    item_id: str = field(default_factory=lambda: new_id("item"))
    status: str = "completed"
    codes: list[NDArray[np.int32]] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    num_samples: int = 0
    played_samples: int | None = None
    num_bytes: int = 0

    def record(self, write: Callable[[bytes], bytes] | None = None) -> dict[str, Any]:
        """Return the item as OpenAI's object; see `ItemPart.record`."""
        head = {"id": self.item_id, "object": "realtime.item", "type": "message", "status": self.status}
        parts = self.parts if self.played_samples is None else [replace(self.parts[0], text=self.text)]
        return head | {"role": self.role, "content": [content_part.record(write) for content_part in parts]}

    def cut(self, num_samples: int) -> None:
        """Truncate a spoken reply to its first `num_samples` samples, because only these were played."""
        self.played_samples = None if num_samples >= self.num_samples else num_samples

    def turns(self, files: list[bytes], images: list[bytes]) -> list[dict[str, Any]]:
        """Return the server's turns for the item; append its audio to `files`, and its images to `images`."""
        if self.role == "assistant":
            text_field: dict[str, Any] = {"text": self.text} if self.text else {}
            codes = self._played_codes()
            text_field |= {} if codes is None else {"codes": codes.tolist()}
            return [{"role": self.role} | text_field] if text_field else []
        contents: list[dict[str, Any]] = []
        for content_part in self.parts:
            if content_part.kind == "input_image":
                images.append(content_part.image)
                contents.append({"image": "image"})
            elif content_part.pcm:
                files.append(wav_header(DEFAULT_RATE, len(content_part.pcm)) + content_part.pcm)
                contents.append({"audio": "audio"})
            else:
                contents.append({"text": content_part.text})
        return [{"role": self.role} | content for content in contents]

    @property
    def text(self) -> str:
        """Text of the item; for an interrupted reply with word times, only the words that had begun."""
        if self.played_samples is None:
            return self.parts[0].text or ""
        return " ".join(word.word for word in self.words if word.start_s * DEFAULT_RATE < self.played_samples)

    def _played_codes(self) -> NDArray[Any] | None:
        if not self.codes:
            return None
        codes = np.concatenate(self.codes, axis=1)
        if self.played_samples is not None:
            codes = codes[:, : round(codes.shape[1] * self.played_samples / self.num_samples)]
        return codes if codes.shape[1] else None


class Conversation:
    """Ordered items of a conversation."""

    def __init__(self, max_items: int, max_bytes: int, held: Held):
        self.items: list[Item] = []
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._held = held

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)

    def add(self, item: Item, behind: str | None = None) -> str | None:
        """Insert an item after the item `behind`, or at the end; return the preceding item's id."""
        if any(item.item_id == other.item_id for other in self.items):
            message = f"item.id: expected an id that no other item of the conversation has, got {item.item_id!r}"
            raise ApiError(400, message, "item.id", "item_create_duplicate_item_id")
        position = len(self.items) if behind is None else self._position_after(behind)
        num_bytes = ITEM_BYTES + sum(
            PART_BYTES
            + len(content_part.pcm)
            + len(content_part.image)
            + MAX_CHAR_BYTES * len((content_part.text or "") + content_part.url_head)
            for content_part in item.parts
        )
        if item.role == "system":
            self._expect_room(num_bytes)
        self._held.add(num_bytes)
        item.num_bytes = num_bytes
        self.items.insert(position, item)
        return self.items[position - 1].item_id if position else None

    def grow(self, item: Item, num_bytes: int) -> bool:
        """Add to an item's accounted memory, or raise ApiError; return False if the item was removed."""
        if not any(other is item for other in self.items):
            return False
        self._held.add(num_bytes)
        item.num_bytes += num_bytes
        return True

    def find(self, item_id: str) -> Item:
        """Return the item with this id; raise ApiError if there is none."""
        return self.items[self._index(item_id)]

    def remove(self, item: Item) -> None:
        """Remove an item."""
        self.items.remove(item)
        self._held.remove(item.num_bytes)

    def surplus(self) -> list[Item]:
        """Return the oldest items that exceed the limits, except system items; the caller must remove them."""
        num_over = len(self.items) - self._max_items
        bytes_over = self.num_bytes - self._max_bytes
        dropped: list[Item] = []
        for item in (candidate for candidate in self.items[:-1] if candidate.role != "system"):
            if num_over <= 0 and bytes_over <= 0:
                break
            dropped.append(item)
            num_over = num_over - 1
            bytes_over = bytes_over - item.num_bytes
        return dropped

    def clear(self) -> None:
        """Remove all items."""
        for item in list(self.items):
            self.remove(item)

    def turns(self, instructions: str | None) -> tuple[list[dict[str, Any]], list[bytes], list[bytes]]:
        """Return the server's turns, and the files of their audio and of their images.

        All system texts form one turn at the beginning.
        """
        files = list[bytes]()
        images = list[bytes]()
        instruction_texts = [instructions or "", *(content_part.text or "" for content_part in self._parts("system"))]
        system = "\n".join(text for text in instruction_texts if text)
        turns = [{"role": "system", "text": system}] if system else []
        for item in self.items:
            turns += [] if item.role == "system" else item.turns(files, images)
        return turns, files, images

    def _expect_room(self, num_bytes: int) -> None:
        """Raise ApiError if a system item of `num_bytes` would exceed the limits; no other item is removed for it."""
        if len(self.items) >= self._max_items:
            expected = f"at most {self._max_items} items in the conversation, including system messages"
            raise mismatch("item", expected, f"{len(self.items) + 1} items")
        if self.num_bytes + num_bytes > self._max_bytes:
            expected = f"at most {self._max_bytes} bytes in a conversation"
            raise mismatch("item.content", expected, f"{self.num_bytes + num_bytes} bytes")

    def _parts(self, role: str) -> Sequence[ItemPart]:
        return [content_part for item in self.items if item.role == role for content_part in item.parts]

    def _position_after(self, item_id: str) -> int:
        """Return the position after an item; 0 for ROOT."""
        return 0 if item_id == ROOT else self._index(item_id) + 1

    def _index(self, item_id: str) -> int:
        for index, item in enumerate(self.items):
            if item.item_id == item_id:
                return index
        raise ApiError(400, f"item_id: there is no item {item_id[:64]!r}", "item_id", "item_not_found")


def asked_kinds(turns: list[dict[str, Any]]) -> set[str]:
    """Return the types of content in the user's turns since the last reply: `text`, `audio`, `image`."""
    kinds: set[str] = set()
    for turn in reversed(turns):
        if turn["role"] != "user":
            break
        kinds |= set(turn) - {"role"}
    return kinds
