"""Every test of the engine runs in the environment that the engine itself asks for."""

from stretto.engine.environment import prepare_environment

prepare_environment()
