"""Response sender with a fake decoder that answers everything immediately."""

from stretto.triton_io.flow import FlowTable
from tests.fakes_triton import InferenceResponse, ResponseSender
from tests.triton_io.sealing import envelope_in


class AnsweringSender(ResponseSender):
    """Sender that counts an answer in the flow slot for every chunk and probe sent."""

    def __init__(self, table: FlowTable) -> None:
        super().__init__()
        self._table = table

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        super().send(response, flags)
        if response is not None and response.error is None:
            self._table.slot_at(envelope_in(response).flow).count_answer()
