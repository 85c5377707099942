"""Route of jobs that read long texts aloud."""

import argparse
import os

from stretto_client.console import argument_path
from stretto_gateway.gateway import Gateway
from stretto_gateway.jobs.endpoints import router
from stretto_gateway.jobs.work import JobOptions, Jobs
from stretto_gateway.routes import Route

JOBS = "STRETTO_JOBS"


class JobRoute(Route):
    """Jobs, whose folder is an option of the gateway."""

    position = 50
    router = router

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        about = f"folder of jobs that read long texts aloud, which are refused without it; default: {JOBS}, or none"
        default = os.environ.get(JOBS) or None
        parser.add_argument("--jobs", type=argument_path, metavar="FOLDER", default=default, help=about)

    def read_settings(self, args: argparse.Namespace) -> JobOptions:
        if args.jobs is not None:
            args.jobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return JobOptions(args.jobs)

    def make_state(self, gateway: Gateway) -> Jobs:
        return Jobs(gateway)


ROUTE = JobRoute()
