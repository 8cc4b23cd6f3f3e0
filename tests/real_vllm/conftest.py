"""A real vLLM server for the whole test session, and weights for it. `make test-vllm` runs these tests."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from real_vllm.smollm2 import model_folder, write_changed
from real_vllm.vllm_process import VllmProcess

Folders = dict[int, Path]

# Other test runs have no vLLM, and cannot even import these modules.
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # noqa: PLC0415  other test runs import this file too

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders of policy versions 0 to 2: the model as it is, and two that are a little off."""
    path = tmp_path_factory.mktemp("weights")
    changed = {seed: write_changed(model_folder(), path / f"policy-{seed:06d}", seed=seed) for seed in (1, 2)}
    return {0: model_folder()} | changed


@pytest.fixture(scope="session")
def vllm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmProcess]:
    """The server that all tests share; a test that kills it starts it again."""
    process = VllmProcess(model_folder(), tmp_path_factory.mktemp("vllm"), "--enable-scale-out")
    process.start()
    yield process
    process.go_on()
    process.kill()
