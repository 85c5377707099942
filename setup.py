"""Package data that pyproject.toml cannot express.

It consists of the model repository, the families' tables of releases, the gateway's web page and py.typed.
"""

from setuptools import find_packages, setup

DATA = "stretto.model_repository"

setup(
    packages=[
        *find_packages("python_backend"),
        *find_packages("contract"),
        *find_packages("client"),
        *find_packages("gateway"),
        DATA,
    ],
    package_dir={
        "stretto": "python_backend/stretto",
        "stretto_contract": "contract/stretto_contract",
        "stretto_client": "client/stretto_client",
        "stretto_gateway": "gateway/stretto_gateway",
        DATA: "model_repository",
    },
    package_data={
        "stretto": ["py.typed"],
        "stretto.families": ["*/releases.json", "*/releases.md", "*/config/*"],
        "stretto_contract": ["py.typed"],
        "stretto_client": ["py.typed"],
        "stretto_gateway": ["py.typed", "static/*"],
        DATA: [
            "*/config.pbtxt",
            "*/1/model.py",
            "*/1/engine.json",
            "*/1/.gitkeep",  # Triton requires the version folder, even if it is empty
            "*/1/checkpoint/*.json",
            "*/1/checkpoint/*.safetensors",
        ],
    },
)
