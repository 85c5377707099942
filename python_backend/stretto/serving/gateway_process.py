"""The gateway process in front of the server: OpenAI's API over HTTP."""

import importlib.util
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

from stretto.serving.announcing import say
from stretto.serving.config import LaunchConfig
from stretto.serving.folders import state_folder
from stretto.serving.installation import LaunchError
from stretto.serving.launch_log import LaunchLog
from stretto.serving.pulse import Pulse
from stretto.serving.server import die_with_the_launcher

MODULE = "stretto_gateway"  # a separate program: run, not imported
NEEDED = (MODULE, "fastapi", "uvicorn", "av", "multipart", "prometheus_client")
VOICES = "STRETTO_VOICES"  # environment variable of the gateway: folder of voices
RESTART_S = 5.0  # minimum time between starts
STOP_S = 5.0
BAD_USAGE = 2  # the gateway's exit status for invalid arguments, or an invalid file that they name


class GatewayProcess:
    """Gateway process, restarted if it ends or hangs.

    Raises LaunchError if the gateway is not installed.
    """

    def __init__(self, config: LaunchConfig, port: int, log: LaunchLog) -> None:
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise LaunchError(f"--gateway: no module {missing[0]!r}; the extra 'gateway' of this package brings it")
        self._config, self._port, self._log = config, port, log
        self._pulse, self._has_worked = Pulse("gateway"), False
        self._start()

    def command_line(self) -> list[str]:
        """Return the gateway's command, with the proxy as its server; the user's own arguments come last."""
        is_any = ipaddress.ip_address(self._config.address).is_unspecified
        host = "localhost" if is_any else self._config.address
        server = f"[{host}]:{self._config.grpc_port}" if ":" in host else f"{host}:{self._config.grpc_port}"
        flags = ("--address", self._config.address, "--port", str(self._port))
        drain = ("--drain-seconds", str(self._config.drain_seconds))
        own = (*flags, *drain, *self._voices())
        return [sys.executable, "-P", "-m", MODULE, "--server", server, *own, *self._config.gateway_args]

    def _voices(self) -> tuple[str, ...]:
        """Return the flag for a persistent voices folder.

        Empty if the user has set STRETTO_VOICES, or if the folder cannot be created.
        """
        if os.environ.get(VOICES):
            return ()
        folder = state_folder() / "voices"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            say(f"the gateway keeps no voices: cannot make {folder} ({error.strerror}); name a folder with {VOICES}")
            return ()
        return ("--voices", str(folder))

    def _start(self) -> None:
        self._started = time.monotonic()
        environment = os.environ | self._pulse.prepare()
        self._process, self._output = self._log.start(
            self.command_line(),
            env=environment,
            pass_fds=[self._pulse.writing],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_the_launcher,
        )
        self._pulse.begin(self._process.pid)

    def keep_alive(self) -> None:
        """Restart the gateway if it has ended or hangs.

        Raises:
            LaunchError: If it has refused its arguments and never worked.
        """
        self._has_worked = self._has_worked or self._pulse.has_beaten
        if self._process.poll() == BAD_USAGE and not self._has_worked:
            raise LaunchError(self._output.tail().strip().rpartition("\n")[2])
        if self._process.poll() is None and self._pulse.is_hung():
            self._process.kill()
            self._process.wait()
        if self._process.poll() is not None and time.monotonic() - self._started > RESTART_S:
            with suppress(OSError):  # process creation failed; the next call retries
                self._start()

    @property
    def is_beating(self) -> bool:
        """True once the running gateway's event loop has sent a heartbeat."""
        return self._pulse.has_beaten

    def fault(self) -> str:
        """Return a description of the gateway's fault; empty if none is known."""
        return "the gateway has ended" if self._process.poll() is not None else self._pulse.fault()

    def drain(self, polls: Iterable[None]) -> None:
        """Stop the gateway from accepting requests and wait for it to exit, until `polls` is exhausted."""
        self._process.terminate()
        for _ in polls:
            if self._process.poll() is not None:
                break

    def stop(self) -> None:
        """Terminate the gateway; kill it after STOP_S."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pulse.close()
