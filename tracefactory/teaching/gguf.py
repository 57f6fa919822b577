"""Write a trained student as a GGUF file, so that llama.cpp (`use: local`) lets it answer.

The file that the student came from gives the metadata: tokenizer, chat template, hyperparameters. Its tensors are
replaced by the trained ones. Each file is read back before it has its name: what transformers loads from it must be the
trained weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from tracefactory.core.checkpoint import Checkpoint, existing
from tracefactory.core.errors import Mistake, UserError
from tracefactory.core.files import whole_file

Precision = Literal["F32", "F16"]
_FILE_TYPES = {"F32": 0, "F16": 1}  # general.file_type: ALL_F32 and MOSTLY_F16
_TEMPLATE = "tokenizer.chat_template"


def write_gguf(model: Path, source: Path, target: Path, precision: Precision = "F16") -> None:
    """Write a trained student as a GGUF file.

    Args:
        model: the folder of the trained student: weights and tokenizer as transformers saves them.
        source: the GGUF file that the student came from.
        target: the file to write; it is there only if what transformers loads from it is the trained weights.
        precision: of the matrices; vectors are in F32, as llama.cpp needs them.

    Raises:
        UserError: when a file is missing or damaged, the two are not of one model, or this is no architecture of which
            the weights can be written without loss.
    """
    import gguf

    if target.suffix != ".gguf":
        raise ValueError(f"{target}: readers know a GGUF file by the suffix .gguf")
    try:
        reader = gguf.GGUFReader(existing(source))
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{source}: not a GGUF file that can be read: {error}") from error
    architecture = str(reader.fields["general.architecture"].contents())
    _check_vocabulary(existing(model), reader)
    tensors = _tensors(model, reader, architecture)
    with whole_file(target) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        _copy_metadata(reader, writer, precision, _template(model))
        for tensor in reader.tensors:
            if tensor.name not in tensors:  # what transformers computes itself, such as the frequencies of positions
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
                continue
            values = tensors[tensor.name]
            wide = np.float32 if precision == "F32" or values.ndim == 1 else np.float16
            with np.errstate(over="ignore"):  # the proof names what is too large
                writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=wide))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        _prove(model, temporary, precision, architecture)


def _check_vocabulary(model: Path, reader: Any) -> None:
    """Check that each token has the same number in the file as in the tokenizer that the student was trained with.

    Raises:
        UserError: when one has not.
    """
    from transformers import AutoTokenizer

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    for token, number in AutoTokenizer.from_pretrained(model).get_vocab().items():
        if number >= len(tokens) or tokens[number] != token:
            message = f"{model}: token {number} of its tokenizer is {token!r}, but not in the GGUF file"
            raise UserError(Mistake(message, hint="give the file that the student came from"))


def _tensors(model: Path, reader: Any, architecture: str) -> dict[str, Any]:
    """Return the trained tensors in the layout of llama.cpp by the names of the tensors of the source.

    Raises:
        UserError: when they cannot be.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import modeling_gguf_pytorch_utils as loading

    kind = loading.TENSOR_PROCESSORS.get(architecture, loading.TensorProcessor)
    if kind not in (loading.TensorProcessor, loading.LlamaTensorProcessor):
        raise _refused(architecture, "its tensors have another layout there")
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    try:
        names = loading.get_gguf_hf_weights_map(outline, kind(config=config.to_dict()))
    except NotImplementedError as error:
        raise _refused(architecture, str(error)) from error
    trained = _weights(model)
    found = {}
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name not in trained:
            continue
        values = trained[name]
        if list(values.shape) != [int(one) for one in reversed(tensor.shape)]:
            message = f"{model}: {name} is {list(values.shape)}, but {tensor.name} of the GGUF file has another shape"
            raise UserError(Mistake(message, hint="give the file that the student came from"))
        if kind is loading.LlamaTensorProcessor:
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            values = _permuted(values, heads.get(tensor.name.split(".")[-2]))
        found[tensor.name] = values
    return found


def _permuted(values: Any, heads: int | None) -> Any:
    """Return the rows of a query or key matrix as llama.cpp pairs them: a rotation has adjacent rows.

    Args:
        values: the matrix as transformers has it, where a rotation has a row of each half of a head.
        heads: its number of heads; None for another matrix.
    """
    if heads is None:
        return values
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _weights(model: Path) -> dict[str, Any]:
    """Return the tensors of the safetensors files of a folder as float32 arrays."""
    from safetensors.torch import load_file

    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise UserError(f"{model}: no safetensors files")
    return {name: one.float().numpy() for file in files for name, one in load_file(file).items()}


def _template(model: Path) -> str | None:
    """Return the chat template that the student was trained with; None where its folder has none."""
    file = model / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else None


def _copy_metadata(reader: Any, writer: Any, precision: Precision, template: str | None) -> None:
    import gguf

    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.quantization_version"):
            continue  # the writer's own, or of quantized tensors
        kind, value = field.types[0], field.contents()
        if name == "general.file_type":
            value = _FILE_TYPES[precision]
        elif name == "general.alignment":
            writer.data_alignment = value
        elif name == _TEMPLATE and template is not None:
            continue
        writer.add_key_value(name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    if template is not None:
        writer.add_chat_template(template)


def _prove(model: Path, written: Path, precision: Precision, architecture: str) -> None:
    """Check that transformers loads the trained weights from the written file.

    Raises:
        UserError: when it loads others.
    """
    import torch

    from tracefactory.serving.loading import load_model

    wanted = load_model(Checkpoint(model=str(model.absolute()), device="cpu")).state_dict()
    found = load_model(Checkpoint(model=str(written.absolute()), device="cpu")).state_dict()
    for name, values in wanted.items():
        rounded = values if precision == "F32" or values.ndim == 1 else values.half().float()
        if not torch.isfinite(rounded).all():
            raise _refused(architecture, f"{name} has values that are no number or too large for {precision}")
        if name not in found or not torch.equal(found[name], rounded):
            raise _refused(architecture, f"what is read back for {name} is not what was trained")
    if missing := found.keys() - wanted.keys():
        raise _refused(architecture, f"the file has {sorted(missing)[0]}, which the trained model has not")


def _refused(architecture: str, why: str) -> UserError:
    message = f"a trained student of the architecture {architecture!r} cannot be written as a GGUF file: {why}"
    return UserError(Mistake(message, hint="let it answer through a server that loads safetensors, such as vLLM"))
