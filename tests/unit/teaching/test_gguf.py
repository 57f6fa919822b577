"""A student that is written as a GGUF file is read back as it was trained, or not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracefactory.core.checkpoint import Checkpoint
from tracefactory.core.errors import UserError
from tracefactory.teaching import gguf as writing
from tracefactory.teaching.gguf import write_gguf

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("default")


def in_pairs(values: Any, heads: int) -> Any:
    """Return the rows as llama.cpp has them, one after the other."""
    size = values.shape[0] // heads
    order = [head * size + half * size // 2 + at for head in range(heads) for at in range(size // 2) for half in (0, 1)]
    return values[order]


def source_of(tiny: Checkpoint, path: Path, architecture: str = "llama", **more: Any) -> Path:
    """Write the GGUF file that the tiny student might have come from, by hand."""
    from tracefactory.serving.loading import load_model, load_tokenizer

    model = load_model(tiny)
    tokens = load_tokenizer(tiny).convert_ids_to_tokens(range(262))
    state = {name: values.numpy() for name, values in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(7)
    for name, value in (("context_length", 64), ("embedding_length", 32), ("feed_forward_length", 48)):
        writer.add_uint32(f"{architecture}.{name}", value)
    for name, value in (("block_count", 2), ("attention.head_count", 4), ("attention.head_count_kv", 2)):
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_array("tokenizer.ggml.tokens", more.get("tokens", tokens))
    writer.add_chat_template("the template of the file")
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    for layer in range(2):
        for name, part in parts.items():
            values = state[f"model.layers.{layer}.{part}.weight"]
            values = in_pairs(values, {"attn_q": 4, "attn_k": 2}[name]) if name in ("attn_q", "attn_k") else values
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(more.get(name, values)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def trained(tiny: Checkpoint, tokenizer: Any, tmp_path: Path) -> Path:
    """Return the folder of the tiny student with other weights."""
    import torch

    from tracefactory.serving.loading import load_model

    model = load_model(tiny)
    torch.manual_seed(7)
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("precision", ["F32", "F16"])
def test_the_written_file_has_the_trained_weights_and_the_metadata_of_its_source(
    tiny: Checkpoint, trained: Path, tokenizer: Any, tmp_path: Path, precision: Any
) -> None:
    source = source_of(tiny, tmp_path / "source.gguf")
    write_gguf(trained, source, tmp_path / "made.gguf", precision)
    written, before = gguf.GGUFReader(tmp_path / "made.gguf"), gguf.GGUFReader(source)
    assert [one.name for one in written.tensors] == [one.name for one in before.tensors]
    changed = {"general.file_type", "tokenizer.chat_template"}
    for name, field in before.fields.items():
        if not name.startswith("GGUF."):
            assert (written.fields[name].contents() == field.contents()) is (name not in changed), name
    assert written.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    weights = writing._weights(trained)
    key = next(one for one in written.tensors if one.name == "blk.1.attn_k.weight")
    wanted = in_pairs(weights["model.layers.1.self_attn.k_proj.weight"], 2)
    assert np.array_equal(key.data, wanted.astype(np.float32 if precision == "F32" else np.float16))
    assert key.tensor_type.name == precision
    assert {one.tensor_type.name for one in written.tensors if "norm" in one.name} == {"F32"}


def test_what_cannot_be_proved_is_not_written(
    tiny: Checkpoint, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = source_of(tiny, tmp_path / "source.gguf"), tmp_path / "made.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(writing, "_permuted", lambda values, heads: values)
        with pytest.raises(UserError, match=r"what is read back for model.layers.0.self_attn.q_proj.weight is not"):
            write_gguf(trained, source, target)
    with monkeypatch.context() as patched:
        weights = writing._weights(trained)
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = 7
        patched.setattr(writing, "_weights", lambda model: weights)
        with pytest.raises(UserError, match=r"what is read back for model\.layers\.0\.mlp\.up_proj"):
            write_gguf(trained, source, target)
    other = source_of(tiny, tmp_path / "other.gguf", ffn_up=np.zeros((40, 32), np.float32))
    with pytest.raises(UserError, match=r"up_proj.weight is \[48, 32\], but blk.0.ffn_up.weight .* another shape"):
        write_gguf(trained, other, target)
    other = source_of(tiny, tmp_path / "other.gguf", tokens=[f"t{number}" for number in range(262)])
    with pytest.raises(UserError, match=r"token \d+ of its tokenizer is .* but not in the GGUF file"):
        write_gguf(trained, other, target)
    with pytest.raises(UserError, match="'gemma2' cannot be written as a GGUF file"):
        write_gguf(trained, source_of(tiny, tmp_path / "gemma.gguf", "gemma2"), target)
    (tmp_path / "nonsense.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(UserError, match="not a GGUF file"):
        write_gguf(trained, tmp_path / "nonsense.gguf", target)
    with pytest.raises(UserError, match="no such file"):
        write_gguf(trained, tmp_path / "missing.gguf", target)
    with pytest.raises(ValueError, match="suffix"):
        write_gguf(trained, source, tmp_path / "made.bin")
    assert not target.exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_weight_too_large_for_half_precision_is_refused(tiny: Checkpoint, trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = trained / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, file, metadata={"format": "pt"})
    source = source_of(tiny, tmp_path / "source.gguf")
    with pytest.raises(UserError, match="too large for F16"):
        write_gguf(trained, source, tmp_path / "made.gguf", "F16")
    write_gguf(trained, source, tmp_path / "made.gguf", "F32")
