"""Which tensors of a GGUF file hold the parameters of a model, and which of them a model may have besides."""

from __future__ import annotations

from collections.abc import Callable

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from sea_export.errors import InputError

__all__ = ["TAKEN_BIASES", "tensor_namer"]

TAKEN_BIASES = {
    "llama": ("ffn_down", "attn_output"),
    "nemotron": ("ffn_down", "attn_output"),
}
"""The tensors beside which llama.cpp reads a bias if there is one, by architecture.

They are those whose bias its loader creates with TENSOR_NOT_REQUIRED, and which its graph adds: src/models/llama.cpp at
commit 069be0ae22f3 and src/models/nemotron.cpp at commit 909a16328224. Only architectures are listed that transformers
loads from GGUF files and whose config has an entry that adds the bias."""


def tensor_namer(named: object, file: str, layers: int) -> Callable[[str], str | None]:
    """Gives the name of the tensor that holds a parameter of a model; None if its files have no such tensor.

    Args:
        named: the architecture, as llama.cpp calls it.
        file: the file that says so.
        layers: the number of layers.

    Raises:
        InputError: the gguf package does not know the architecture.
    """
    architecture = next((key for key, name in MODEL_ARCH_NAMES.items() if name == named), None)
    if architecture is None:
        raise InputError(
            f"{file}: the gguf package does not know the architecture {named!r}. Upgrade it, or choose --format merged."
        )
    names = get_tensor_name_map(architecture, layers)

    def find(parameter: str) -> str | None:
        stem, ending = parameter, ".weight"  # the experts of a layer are a parameter without an ending
        for known in (".weight", ".bias"):
            if parameter.endswith(known):
                stem, ending = parameter.removesuffix(known), known
        name = names.get_name(stem)
        return None if name is None else f"{name}{ending}"

    return find
