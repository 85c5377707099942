"""Strict reader of model configs for tests: protobuf text format without rare forms."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2] / "model_repository"
TOKEN = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z_0-9.+-]+|[{}\[\]:,]|\S""")


def read_config(model: str) -> dict[str, Any]:
    """Return the config of a model in the repository; each field becomes a list of values."""
    return parse((ROOT / model / "config.pbtxt").read_text())


def parse(text: str) -> dict[str, Any]:
    """Return a config's fields; each becomes a list of values."""
    message, rest = read_message([*TOKEN.findall(re.sub(r"#.*", "", text)), "}"])
    assert not rest, "unbalanced braces"
    return message


def read_message(tokens: list[str]) -> tuple[dict[str, Any], list[str]]:
    message: dict[str, Any] = {}
    while tokens[0] != "}":
        name, tokens = tokens[0], tokens[1:]
        tokens = tokens[1:] if tokens[0] == ":" else tokens
        values, tokens = read_values(tokens)
        message.setdefault(name, []).extend(values)
        tokens = tokens[1:] if tokens[0] == "," else tokens
    return message, tokens[1:]


def read_values(tokens: list[str]) -> tuple[list[Any], list[str]]:
    if tokens[0] == "{":
        message, tokens = read_message(tokens[1:])
        return [message], tokens
    if tokens[0] != "[":
        return [scalar(tokens[0])], tokens[1:]
    tokens, found = tokens[1:], []
    while tokens[0] != "]":
        values, tokens = read_values(tokens)
        found += values
        tokens = tokens[1:] if tokens[0] == "," else tokens
    return found, tokens[1:]


def scalar(token: str) -> str | int:
    return token[1:-1] if token[0] in "\"'" else int(token) if re.fullmatch(r"[+-]?\d+", token) else token
