"""`POST /v1/audio/verify`: detection of synthetic speech in a file, by `stretto verify` in a separate process."""

import asyncio
import json
import os
import re
import sys
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from stretto_gateway.admission import unless_disconnected
from stretto_gateway.answers import ApiError, described
from stretto_gateway.fields import Body, Ignored
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech_request import WITH_FILE, File

router = APIRouter()
COMMAND = ("nice", "-n", "19", sys.executable, "-P", "-m", "stretto", "verify", "--json", "-")
BEFORE = "stretto verify: -: file: "  # the file's error message
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # beside the server, which needs the other cores
# Environment variables that the process needs; others may be secrets. The last one lets the launcher find the process.
NEEDED = re.compile(r"PATH|HOME|TMPDIR|LANG|LC_\w+|LD_\w+|PYTHON\w+|XDG_\w+|VIRTUAL_ENV|STRETTO_LAUNCH_ID")
UNREADABLE = 2  # exit code


class Metadata(TypedDict):
    """Metadata of a file."""

    digital_source_type: str | None


class Verified(TypedDict):
    """Findings of `stretto verify`."""

    metadata: Metadata
    mark: dict[str, Any]
    manifest: dict[str, Any] | None


class VerifyForm(Body):
    """Form of a request."""

    file: File


@router.post("/v1/audio/verify", response_class=Response, responses=described("The findings", model=Verified))
async def verify_audio(form: Annotated[VerifyForm, WITH_FILE], request: Request) -> Response:
    """Look for marks of synthetic speech in a file of a format of transcriptions."""
    gateway: Gateway = request.app.state.gateway
    ignored = Ignored(form, gateway.strict)
    record = await unless_disconnected(request.receive, verified(gateway, await form.file.read()))
    return JSONResponse(record, headers=ignored.headers)


async def verified(gateway: Gateway, data: bytes) -> Verified:
    """Return the findings about a file; raise ApiError if it cannot be read, many others wait, or the process fails.

    One file is verified at a time. The process ends with the request.
    """
    async with gateway.verifying.slot():
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            cwd="/",  # the gateway's current folder may have been removed since the start
            env={name: value for name, value in os.environ.items() if NEEDED.fullmatch(name)} | ONE_THREAD,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, errors = await process.communicate(data)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == UNREADABLE:
        raise ApiError(400, f"file: {errors.decode().rpartition(BEFORE)[2].strip()}", "file")
    if process.returncode:
        raise ApiError(500, "the program that verifies files failed")
    findings: Verified = json.loads(out)
    return {"metadata": findings["metadata"], "mark": findings["mark"], "manifest": findings["manifest"]}
