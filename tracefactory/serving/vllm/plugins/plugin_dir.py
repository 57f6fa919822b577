"""What vLLM's environment gets to see of this package: a folder for its PYTHONPATH, made when a server starts.

vLLM runs in an environment of its own, which has neither this package nor what it needs. The folder holds copies of the
few modules that a plugin consists of; nothing is installed and no pin is touched. The modules need numpy and torch,
which vLLM brings. They form a package of another name, so that a checkout in the working directory, or an installed
tracefactory, does not come before it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = "tracefactory_vllm"
"""The name under which vLLM imports the modules."""

PLUGINS = {"noise": "draft_noise", "fused": "fused_decoding"}
"""The module of every plugin."""

_ENTRY_POINTS = {"fused": "[vllm.general_plugins]\ntracefactory_fused = tracefactory_vllm.fused_decoding:install\n"}
"""By which vLLM loads a plugin itself; one that has none is named on vLLM's command line."""

_HERE = Path(__file__).parent
_PREFIXES = ("tracefactory.sampling.", "tracefactory.serving.vllm.plugins.")
_SHARED = ("noise", "candidates", "acceptance")


def write_site(folder: Path, plugin: str) -> None:
    """Write the modules of a plugin into `folder`, which is to be on vLLM's PYTHONPATH."""
    target = folder / PACKAGE
    target.mkdir(parents=True)
    (target / "__init__.py").touch()
    sampling = _HERE.parents[2] / "sampling"
    for file in (*(sampling / f"{name}.py" for name in _SHARED), _HERE / f"{PLUGINS[plugin]}.py"):
        text = file.read_text(encoding="utf-8")
        for prefix in _PREFIXES:
            text = text.replace(prefix, f"{PACKAGE}.")
        (target / file.name).write_text(text, encoding="utf-8")
    if plugin in _ENTRY_POINTS:
        metadata = folder / f"{PACKAGE}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(_ENTRY_POINTS[plugin], encoding="utf-8")
