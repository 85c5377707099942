"""Realtime session of a call that sends its turns to the operator's webhook and speaks the answers."""

import asyncio
from contextlib import ExitStack, aclosing, suppress
from typing import Any

from stretto_client import SpeakArguments, Speech
from stretto_gateway.answers import ApiError
from stretto_gateway.catalogue import CallersVoices
from stretto_gateway.fields import Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.conversation import Conversation
from stretto_gateway.realtime.reply import Order, Reply, response_record
from stretto_gateway.realtime.session import RealtimeSession
from stretto_gateway.realtime.settings import FINISH_REASON, Settings
from stretto_gateway.realtime.talk import NAME, Talk
from stretto_gateway.speech import FIELDS, WRITTEN_FIELDS, voice_options
from stretto_gateway.speech_request import SpeechFields
from stretto_gateway.speech_stream import IncomingText, asking
from stretto_telephone.channel import CallChannel
from stretto_telephone.messages import PHONE
from stretto_telephone.webhook import Webhook

MAX_EVENTS = 64  # maximum number of a call's events that wait for the webhook
TRANSCRIBED = f"{NAME}.completed"  # event with the transcript of a turn


class GivenReply(Reply):
    """Reply with a given text, which may still be incomplete."""

    _fields = FIELDS | WRITTEN_FIELDS

    def __init__(
        self,
        gateway: Gateway,
        channel: Channel,
        conversation: Conversation,
        text: IncomingText,
        options: SpeakArguments,
        speed: float,
    ):
        record = response_record(["audio"], None, PHONE, None)
        order = Order([], [], {"task": "tts", "output": {}}, record, [], is_kept=True, speed=speed, form=PHONE)
        super().__init__(gateway, channel, conversation, order)
        self._text = text
        self._options = options
        self._queue = None  # the text is read only once

    def _open_stream(self) -> Speech:
        pieces = self._gateway.metrics.usage.current.counted(self._text.pieces())
        return self._gateway.client.speak(pieces, **self._options)

    async def begin(self, tasks: asyncio.TaskGroup) -> None:
        await super().begin(tasks)
        assert self.task is not None
        self.task.add_done_callback(lambda _: self._text.close())


class WebhookAnswers:
    """Sender of a call's events to the webhook, whose answers are spoken.

    A later event replaces the answer to an earlier one.

    Args:
        fields: Voice and language of the answers; None if nothing is spoken.
    """

    def __init__(
        self,
        gateway: Gateway,
        channel: CallChannel,
        tasks: asyncio.TaskGroup,
        talk: Talk,
        webhook: Webhook,
        fields: SpeechFields | None,
    ):
        self._gateway = gateway
        self._channel = channel
        self._tasks = tasks
        self._talk = talk
        self._webhook = webhook
        self._fields = fields
        self._answering = set[asyncio.Task[None]]()
        self._in_turn = asyncio.Lock()
        self._held = ExitStack()

    async def begin(self, owner: str) -> None:
        """Prepare the voice of the answers; raise ApiError if they cannot be spoken."""
        if self._fields is not None:
            state = self._held.enter_context(asking(owner, self._gateway.sessions.held))
            ignored = Ignored(self._fields, self._gateway.strict)
            self._options = await voice_options(self._gateway, self._fields, state, ignored)

    def report(self, event: str, **fields: Any) -> None:
        """Send an event in the background and speak the answer; raise ApiError (429) if too many events wait."""
        if len(self._answering) >= MAX_EVENTS:
            message = f"event: expected at most {MAX_EVENTS} events that wait for the webhook, got another {event}"
            raise ApiError(429, message, "event", "rate_limit_exceeded")
        if self._fields is not None:
            for earlier in self._answering:
                earlier.cancel()
        task = self._tasks.create_task(self._answer(event, fields))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def mute(self) -> None:
        """Speak no more answers, except one that has begun."""
        self._fields = None

    async def complete(self) -> None:
        """Wait until the webhook has answered all events."""
        if self._answering:
            await asyncio.wait(self._answering)

    def close(self) -> None:
        """Release the memory of the voice."""
        self._held.close()

    async def _answer(self, event: str, fields: dict[str, Any]) -> None:
        text: IncomingText | None = None
        try:
            async with self._in_turn, aclosing(self._webhook.ask(event, **fields)) as pieces:
                async for piece in pieces:
                    if text is None and self._fields is not None and piece.strip():
                        text = await self._speak(self._fields.speed or 1.0)
                    if text is not None:
                        text.add(piece)
        except ApiError as error:
            await self._channel.send_error(error)
        finally:
            if text is not None:
                text.end()

    async def _speak(self, speed: float) -> IncomingText:
        """Start a reply instead of the one in progress; return its text, to which parts are still added."""
        text = IncomingText(self._gateway.limits, self._gateway.sessions.held)
        try:
            await self._talk.replace(
                lambda talk: GivenReply(self._gateway, self._channel, talk, text, self._options, speed)
            )
        except BaseException:
            text.close()
            raise
        return text


class WebhookSession(RealtimeSession):
    """Session whose turns are sent to the operator's webhook.

    Args:
        gateway: The gateway, for the server that transcribes.
        speaker: The gateway, for the server that speaks.
        fields: Voice and language of the answers; None if nothing is spoken.
    """

    def __init__(
        self,
        gateway: Gateway,
        speaker: Gateway,
        channel: CallChannel,
        tasks: asyncio.TaskGroup,
        webhook: Webhook,
        fields: SpeechFields | None,
        owner: str,
    ):
        super().__init__(gateway, channel, "", tasks, CallersVoices(gateway.voices, owner))
        self._owner = owner
        self.answers = WebhookAnswers(speaker, channel, tasks, self._talk, webhook, fields)
        channel.listener = self._notice

    async def begin(self, settings: Settings) -> None:
        """Apply the settings, and report the call; raise ApiError if the answers cannot be spoken."""
        await self.answers.begin(self._owner)
        self._apply(settings, await self._gateway.catalogue.profile())
        self.answers.report("start")

    async def finish(self) -> None:
        """Report the last turn and the end of the call, once both are complete."""
        self.answers.mute()
        with suppress(ApiError):  # the caller was silent
            await self._commit_all()
        await self.complete()
        await self.answers.complete()
        self.answers.report("stop")
        await self.answers.complete()

    def close(self) -> None:
        super().close()
        self.answers.close()

    async def _notice(self, event: str, fields: dict[str, Any]) -> None:
        if event == TRANSCRIBED and fields["transcript"]:
            reason = {"finish_reason": fields[FINISH_REASON]} if FINISH_REASON in fields else {}
            try:
                self.answers.report("turn", text=fields["transcript"], **reason)
            except ApiError as error:
                await self._channel.send_error(error)
