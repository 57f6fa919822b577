"""The folder with our vLLM plugin: copies of the plugin's modules, on vLLM's PYTHONPATH, written when a server starts.

vLLM runs in its own environment, which has neither this package nor its dependencies. Copying the few modules of a
plugin installs nothing there and changes no pinned version. The modules need only numpy and torch, which vLLM requires
too. They form a package with another name, so that neither a checkout in the working directory nor an installed
tracefactory is imported instead.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = "tracefactory_vllm"
"""The package name under which vLLM imports the modules."""

PLUGINS = {"noise": "draft_noise", "fused": "fused_decoding"}
"""The module of each plugin."""

_ENTRY_POINTS = {"fused": "[vllm.general_plugins]\ntracefactory_fused = tracefactory_vllm.fused_decoding:install\n"}
"""Entry points with which vLLM finds a plugin; a plugin without one is named on vLLM's command line."""

_HERE = Path(__file__).parent
_PREFIXES = ("tracefactory.sampling.", "tracefactory.serving.vllm.plugins.")
_SHARED = ("noise", "candidates", "acceptance")


def write_plugin(folder: Path, plugin: str) -> None:
    """Write the modules of a plugin into `folder`, to be added to vLLM's PYTHONPATH."""
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
