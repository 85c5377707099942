"""Rows of a step that may contain a latent.

Most rows of a prompt contain none, and the network that embeds latents is large in some families. The host chooses the
rows by the prompts' ids, because kernel launches must not depend on values on the device.
"""

import numpy as np
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.columns import Array
from stretto.engine.worker.slots import Arrays
from stretto.streams.layout import StreamLayout

NO_PROMPT = np.zeros(0, np.bool_)


class LatentRows:
    """Rows with latents in the prompts of all slots."""

    def __init__(self, layout: StreamLayout, arrays: Arrays):
        assert layout.latents is not None
        self._kinds = (layout.audio[0], layout.latents.voice_ids or range(0))
        self._arrays = arrays
        self._of_slot: dict[int, np.ndarray] = {}

    def fill_slot(self, slot: int, data: NewRequestData) -> None:
        """Store which rows of the prompt of the request in `slot` have a latent."""
        prompt_ids = np.asarray(data.prompt_token_ids or (), np.int64)
        self._of_slot[slot] = np.any([(prompt_ids >= ids.start) & (prompt_ids < ids.stop) for ids in self._kinds], 0)

    def rows(self, batch: InputBatch) -> Array:
        """Return the indices of the rows of `batch` that may have a latent, int64 [n].

        Every row of a reply may have one, because the host does not know its ids. So may rows of vLLM's profiling run,
        whose slots have no request.
        """
        indices = []
        computed = batch.num_computed_tokens_np
        scheduled = batch.num_scheduled_tokens
        for index, slot in enumerate(batch.idx_mapping_np.tolist()):
            first = int(computed[index])
            number = int(scheduled[index])
            of_prompt = self._of_slot.get(slot, NO_PROMPT)[first : first + number]
            may_be = np.concatenate([of_prompt, np.ones(number - len(of_prompt), bool)])
            indices.append(int(batch.query_start_loc_np[index]) + np.flatnonzero(may_be))
        return self._arrays.upload(np.concatenate(indices))
