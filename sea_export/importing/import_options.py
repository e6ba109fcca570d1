"""The options of an import: what the vectors of somebody else's file mean, and where they belong."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sea_export.errors import InputError
from sea_export.importing.source_forms import ADAPTER_FORM, CONTROL_VECTOR_FORM
from sea_export.options import check_strength, check_values, option

__all__ = ["ImportOptions"]

_MEANINGS = ("add", "ablate", "project", "keep")
_SITES = ("residual", "mlp", "attention")
_NUMBERINGS = ("outputs", "inputs")
_KEPT_NORMS = ("rows",)


@dataclass(frozen=True)
class ImportOptions:
    """What vectors mean, and where they belong."""

    as_: str | None = option(
        None,
        "What the vectors mean. add: each is added to the activations of its layer. ablate: one direction is removed "
        "from everything that the model writes. project: directions are removed from the outputs of their own layers. "
        "keep: these outputs keep nothing else. By default add for a control vector in GGUF; else it must be given.",
        _MEANINGS,
        name="as",
    )
    coefficient: float = option(
        1.0,
        "What added vectors, or the changes of an adapter, are multiplied by, or the share that is removed: the "
        "strength of the edit.",
    )
    layers: str | None = option(
        None,
        "Decoder layers to edit, counted from 0: all, last:K, first:K, or a list such as 10-20,25. By default those "
        "that the file has vectors of.",
    )
    site: str = option(
        "residual",
        "What the vectors are of: the residual stream after a layer, or the output of its MLP or attention block.",
        _SITES,
    )
    numbering: str | None = option(
        None,
        "What a vector of number N, or in row N, is of. outputs: what decoder layer N gives. inputs: what it is given, "
        "as in the hidden_states of transformers. By default outputs for vectors with a number; for a row for each "
        "layer it must be given.",
        _NUMBERINGS,
    )
    source_layer: int | None = option(
        None, "Use the vector of this number alone, as if the file had no other. Negative ones count from the end."
    )

    keep_norm: str | None = option(
        None,
        "With --as ablate: change the weights that write the outputs of blocks so that their rows keep their norms, as "
        "the full row normalization of heretic does. The embedding and biases stay as they are, and --layers may name "
        "layers. By default the directions are removed without that.",
        _KEPT_NORMS,
    )

    def __post_init__(self) -> None:
        check_values(self)
        check_strength(self.coefficient)
        if self.layers is not None and self.layers.startswith("signature"):
            raise InputError("--layers: signature is known of fitted edits alone. Choose all, last:K, or a list.")
        if self.coefficient == 0:
            raise InputError("--coefficient: at 0 the edit changes nothing. Give another number.")
        if self.site == "residual" and self.as_ in ("project", "keep"):
            raise InputError(
                f"--site: no weight of a layer writes all of the residual stream that passes it, so that {self.as_} "
                "has no place there. Choose mlp or attention, or --as ablate for one direction."
            )
        if self.keep_norm is not None and self.as_ != "ablate":
            raise InputError("--keep-norm: it is of directions that are removed. Choose --as ablate, or leave it out.")
        if self.as_ == "ablate" and self.site == "residual" and self.layers is not None and self.keep_norm is None:
            raise InputError(
                "--layers: ablate removes a direction from everything that all layers write. Leave it out, or choose "
                "--site mlp or attention."
            )

    def meaning(self, form: str, name: str) -> str:
        """What the vectors of a file mean.

        Args:
            form: its form, which may say it.
            name: its name, for the message.

        Raises:
            InputError: nothing says it, or an option says of an adapter what it says itself.
        """
        if form == ADAPTER_FORM:
            self._check_adapter(name)
            return "adapter"
        meaning = self.as_ or ("add" if form == CONTROL_VECTOR_FORM else None)
        if meaning is None:
            raise InputError(f"--as: {name} does not say what its vectors mean. Choose add, ablate, project or keep.")
        return meaning

    def _check_adapter(self, name: str) -> None:
        for field in fields(self):
            if field.name != "coefficient" and getattr(self, field.name) != field.default:
                option_name = field.name.strip("_").replace("_", "-")
                raise InputError(
                    f"--{option_name}: {name} is an adapter, which says itself what it changes, and where. Leave the "
                    "option out; save has --only and --except."
                )
