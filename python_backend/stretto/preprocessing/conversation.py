"""Selection of a conversation's task, and its content in pieces. Independent of a family's special ids."""

from dataclasses import dataclass

import numpy as np

from stretto.errors import InvalidRequest, shown
from stretto.families.base import Family, Role, Task
from stretto.preprocessing.messages import Turn


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One text or one audio of a conversation.

    Attributes:
        role: Role of the speaker.
        path: Name of the piece in error messages.
        text: The text, or None.
        pcm: Mono samples, float32 [n], or None.
        codes: Audio as codes, [S, T], or None.
    """

    role: Role
    path: str
    text: str | None = None
    pcm: np.ndarray | None = None
    codes: np.ndarray | None = None


def choose_task(name: str | None, turns: tuple[Turn, ...], family: Family) -> Task:
    """Return the named task, or without a name the family's first task that accepts `turns`.

    Args:
        name: Name of a task, or None.
        turns: The conversation.
        family: The model's family.

    Raises:
        InvalidRequest: No such task accepts the turns. The message reports the first task that accepts turns of these
            roles, or otherwise the first task.
    """
    named = [task for task in family.tasks if name in (None, task.name)]
    if not named:
        raise InvalidRequest("task", f"one of {', '.join(task.name for task in family.tasks)}", shown(name))
    refusals = []
    for task in named:
        try:
            check(turns, task)
            return task
        except InvalidRequest as refusal:
            refusals.append(refusal)
    raise min(refusals, key=lambda refusal: refusal.field.endswith(".role"))


def check(turns: tuple[Turn, ...], task: Task) -> None:
    """Raise InvalidRequest unless `task` accepts `turns`."""
    spoken = turns
    if turns[0].role == "system" and task.system:
        _check_kinds(turns[0], set(turns[0].kinds), (), task.system, task)
        spoken = turns[1:]
    last = turns[-1]
    if last.role != task.answers:
        expected = f"{task.answers!r} in the last turn for task {task.name!r}"
        raise InvalidRequest(f"{last.path}.role" if last.path else "messages", expected, repr(last.role))
    roles = ("user", "assistant") if task.has_history else (task.answers,)
    for turn in spoken:
        if turn.role not in roles:
            expected = " or ".join(map(repr, roles))
            raise InvalidRequest(f"{turn.path}.role", f"{expected} for task {task.name!r}", repr(turn.role))
    _check_answered(spoken, task)


def _check_answered(spoken: tuple[Turn, ...], task: Task) -> None:
    """Check the last consecutive turns of the role that `task` answers; together they form its input."""
    first = len(spoken)
    while first and spoken[first - 1].role == task.answers:
        first -= 1
    kinds = [kind for turn in spoken[first:] for kind in turn.kinds]
    if not task.has_history and len(set(kinds)) < len(kinds):
        expected = f"one text and one audio at most for task {task.name!r}"
        raise InvalidRequest(spoken[-1].path, expected, " and ".join(kinds))
    _check_kinds(spoken[-1], set(kinds), task.needs, task.also, task)


def _check_kinds(turn: Turn, kinds: set[str], needs: tuple[str, ...], also: tuple[str, ...], task: Task) -> None:
    got = " and ".join(sorted(kinds))
    missing = [kind for kind in needs if kind not in kinds]
    if missing:
        raise InvalidRequest(turn.path or missing[0], f"{' and '.join(needs)} for task {task.name!r}", got)
    excess = sorted(kinds - {*needs, *also})
    if excess:
        expected = f"only {' and '.join(needs or also)} for task {task.name!r}"
        raise InvalidRequest(turn.path or turn.where(excess[0]), expected, got)
