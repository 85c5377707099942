"""Conditions of a request: vectors added to all its rows, and speaker vectors that its rows attend to."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stretto.errors import InvalidRequest, shown
from stretto.family.mechanism import RequestConditions
from stretto.family.plugin import lazy
from stretto.records.prompt import MAX_MAGNITUDE, Condition

HERE = __package__


@dataclass(frozen=True)
class SpeakerConditions(RequestConditions):
    """Sizes of the conditions.

    Attributes:
        num_ids: Size of the table of vectors. A request chooses some by id; their sum is added to all its rows.
        vector_rows: Number of rows that cross-attention reads. Rows without a speaker vector have a learnt vector.
        guidance_scales: Guidance scales that the model accepts as an input.
        max_voices: Maximum number of named voices of a reply.
    """

    num_ids: int
    vector_rows: int
    vector_width: int
    guidance_scales: tuple[float, ...] = ()
    max_voices: int = 1

    network: ClassVar = lazy(f"{HERE}.model:Conditions")
    layer: ClassVar = lazy(f"{HERE}.model:layer")
    reference: ClassVar = lazy(f"{HERE}.condition_reference:ConditionReference")

    def check(self, condition: Condition) -> None:
        """Raise InvalidRequest if a request's condition does not fit, or has too large numbers."""
        ids = condition.ids
        vectors = condition.vectors
        if len(ids) > self.num_ids or not all(0 <= condition_id < self.num_ids for condition_id in ids):
            expected = f"at most {self.num_ids} ids in [0, {self.num_ids})"
            raise InvalidRequest("condition.ids", expected, shown(list(ids)))
        expected = f"float32 [n <= {self.vector_rows}, {self.vector_width}]"
        if vectors.ndim != 2 or vectors.shape[1] != self.vector_width or len(vectors) > self.vector_rows:
            raise InvalidRequest("condition.vectors", expected, f"{vectors.dtype} {list(vectors.shape)}")
        largest = np.abs(vectors).max(initial=0.0)
        if vectors.dtype != np.float32 or not largest <= MAX_MAGNITUDE:  # also true for NaN
            expected += f" of magnitude at most {MAX_MAGNITUDE:g}"
            raise InvalidRequest("condition.vectors", expected, f"{vectors.dtype} of magnitude {largest:g}")
