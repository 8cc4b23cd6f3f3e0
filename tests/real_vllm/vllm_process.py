"""A real vLLM server in a process of its own, to be killed, made to hang, and started again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from processes import free_port, wait_until

START_TIMEOUT_S = 240.0


class VllmProcess:
    """vLLM's OpenAI-compatible server with the flags that docs/howto/generate-with-vllm.md asks for."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        """Prepare it; options are further flags, and folder takes its log."""
        self._model = model
        self._log = folder / "vllm.log"
        self._options = options
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it on its port, and return when it answers."""
        environment = os.environ | {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the processor from the tests
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
                    "--port", str(self._port), "--model", str(self._model), "--served-model-name", "smollm2",
                    "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32",
                    "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", *self._options,
                ],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip
        wait_until(self._is_up, f"vLLM answers; its log is {self._log}", START_TIMEOUT_S)

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"vLLM ended; its log is {self._log}"
        time.sleep(0.2)
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def label(self) -> str:
        """Return what it calls its weights."""
        return str(httpx.get(f"{self.url}/weight_info", timeout=60).json()["weight_version"])

    def kill(self) -> None:
        """SIGKILL it and its workers."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def hang(self) -> None:
        """Stop it and its workers, their connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
