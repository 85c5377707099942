"""Start the Triton server with this project's model repository, on any machine.

    python -m stretto.serving.command --model-repository model_repository [tritonserver flags]
    python -m stretto.serving.command --status --pid-file PATH
    python -m stretto.serving.command --stop --pid-file PATH

Uses the server of a Triton container, or else the one inside the nvidia-pytriton wheel.
"""

import json
import sys
from pathlib import Path

from stretto.serving import leftovers, pid_file
from stretto.serving.config import LaunchConfig, launch_config, parser
from stretto.serving.installation import LaunchError, find_installation
from stretto.serving.supervisor import Supervisor, say


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags, passed = parser().parse_known_args(arguments)
    if flags.status or flags.stop:
        if flags.pid_file is None:
            parser().error("--status and --stop need --pid-file")
        return status(flags.pid_file) if flags.status else stop(flags.pid_file, flags.drain_seconds)
    try:
        return serve(launch_config(flags, passed))
    except LaunchError as error:
        say(str(error))
        return 1


def serve(config: LaunchConfig) -> int:
    """Keep a server alive until a signal ends it."""
    if not config.model_repository.is_dir():
        raise LaunchError(f"--model-repository: there is no folder {config.model_repository}")
    for launch_id in leftovers.sweep():
        say(f"cleaned up after launch {launch_id}, which died")
    try:
        if config.log_file is not None:
            config.log_file.parent.mkdir(parents=True, exist_ok=True)
            config.log_file.write_bytes(b"")
    except OSError as error:
        raise LaunchError(f"--log-file: {error}") from None
    launch = leftovers.begin_launch()
    try:
        return Supervisor(config, find_installation(config.cache), launch).run()
    finally:
        pid_file.remove(config.pid_file)
        launch.close()


def status(path: Path) -> int:
    """Print the state of a launcher; 0 when its server is ready, 3 when there is none."""
    record = pid_file.read(path)
    print(json.dumps(record or {"state": "stopped"}))
    return 3 if record is None else int(record["state"] != "ready")


def stop(path: Path, drain_seconds: float) -> int:
    """Drain and stop a launcher."""
    say("stopped" if pid_file.stop(path, drain_seconds + 30) else "no server was running")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
