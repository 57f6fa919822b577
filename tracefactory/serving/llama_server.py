"""Run the llama.cpp server as a process: `python -m tracefactory.serving.llama_server --model file.gguf`.

The server itself (HTTP, batching, prompt cache) is llama.cpp's C++ code in xllamacpp; this module sets its parameters
and stops it when its parent exits.
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any
from urllib.parse import urlsplit

from tracefactory.core.processes import end_with_parent, report_ready

_WARNINGS = 2  # llama.cpp's log level; its default also logs several lines per request
_PROMPT_CACHE_MIB = (
    512  # for prompts that lost their slot; llama.cpp's default of 8 GiB is too much for a small machine
)


def serve(arguments: argparse.Namespace) -> Any:
    """Load the model and return the server, which then listens on a loopback port.

    Raises:
        RuntimeError: when llama.cpp cannot load the model; it has printed the reason to stderr.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.model_alias = {os.path.basename(arguments.model)}
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.slots * arguments.ctx_per_slot
    params.n_gpu_layers = arguments.gpu_layers
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.verbosity = _WARNINGS
    params.ui = False
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until interrupted, or until the parent exits if it passed --ready-fd."""
    parser = argparse.ArgumentParser(description="Serve one GGUF model with llama.cpp on 127.0.0.1.")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--port", type=int, default=0, help="0 uses a free port")
    parser.add_argument("--slots", type=int, default=8, help="number of completions decoded in parallel")
    parser.add_argument("--ctx-per-slot", type=int, default=4096, help="tokens of prompt and completion per slot")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--ready-fd", type=int, help="for a parent process: pipe on which to report the port")
    arguments = parser.parse_args()
    if arguments.ready_fd is not None:
        end_with_parent()
    server = serve(arguments)
    if arguments.ready_fd is not None:
        report_ready(arguments.ready_fd, port=urlsplit(server.listening_address).port)
    else:
        print(f"{server.listening_address}/v1", flush=True)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
