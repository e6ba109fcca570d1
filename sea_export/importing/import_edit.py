"""The import of vectors: what a file holds, and what it means, become an edit of a model. Adapters become edits in
`sea_export.importing.adapter_edit`.

| meaning | site | edit |
|---|---|---|
| `add` | `residual` | the vector of layer i is added to what its MLP gives (or its attention, where it has no MLP), after a check that this adds it to what the layer gives |
| `add` | `mlp`, `attention` | it is added to what that block gives |
| `ablate` | `residual` | one direction is removed from what the embedding, all attention blocks and all MLPs give, after a check that nothing else writes into the residual stream |
| `ablate` | `mlp`, `attention` | one direction is removed from what these blocks of all layers, or of those that are named, give |
| `ablate` with `keep_norm` | any | the same of the weights that write these outputs of blocks, whose rows keep their norms |
| `project`, `keep` | `mlp`, `attention` | the directions of layer i are removed from what its block gives, or are all that is kept of it |
"""  # noqa: E501 - the rows of a table

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sea_export.edit.changed_weights import ChangedWeights
from sea_export.edit.edited_layers import EditedLayers
from sea_export.edit.layer_edit import LayerEdit
from sea_export.edit.spectral_edit import SpectralEdit
from sea_export.edit.vector_edit import vector_layer_edit
from sea_export.edit.weight_change import WeightChange
from sea_export.errors import InputError
from sea_export.export.stream_sums import LARGEST_SUM_ERROR, sum_errors
from sea_export.fitting.edit_method import errors_of
from sea_export.fitting.fit_base import with_weight_digests
from sea_export.fitting.layer_choice import LayerChoice
from sea_export.importing.ablation_check import check_ablation
from sea_export.importing.adapter_edit import adapter_edit
from sea_export.importing.adapter_source import AdapterSource, read_adapter_source
from sea_export.importing.import_options import ImportOptions
from sea_export.importing.norm_keeping_ablation import norm_keeping_changes
from sea_export.importing.source_file import SourceFile, read_source_file
from sea_export.importing.source_forms import ADAPTER_FORM, check_source_file
from sea_export.importing.source_vectors import SourceVectors, source_vectors
from sea_export.model.architecture import decoder_layers, hidden_size, layers_with
from sea_export.model.base import Base, open_base
from sea_export.model.targets import COMPONENTS, EMBEDDING, Target
from sea_export.versions import library_versions

__all__ = ["import_edit", "imported_edit", "read_source"]


def import_edit(
    source: str | Path,
    model: str | Path,
    *,
    as_: str | None = ImportOptions.as_,
    coefficient: float = ImportOptions.coefficient,
    layers: str | None = ImportOptions.layers,
    site: str = ImportOptions.site,
    numbering: str | None = ImportOptions.numbering,
    source_layer: int | None = ImportOptions.source_layer,
    keep_norm: str | None = ImportOptions.keep_norm,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> SpectralEdit:
    """Makes an edit of what another program has found. No code that comes with it is run.

    Args:
        source: a control vector in GGUF (llama.cpp, repeng), or vectors in a .safetensors, .npz, .npy or .json file, or
            in a pickle of PyTorch that holds nothing but tensors; or the directory of an adapter of PEFT, LoRA or DoRA.
        model: the model that they are for: a Hub id, a local directory, or a `.gguf` file.
        as_: what vectors mean: `add`, `ablate`, `project` or `keep`; None only for a control vector in GGUF, and for an
            adapter, which says itself what it changes, so that it takes no other argument than `coefficient`.
        coefficient: what added vectors, or the changes of an adapter, are multiplied by, or the share that is removed.
        layers: which decoder layers are edited; None for those of the vectors.
        site: what they are of: `residual`, `mlp` or `attention`.
        numbering: whether their numbers are those of `outputs` or `inputs` of layers; None where that is known.
        source_layer: the number of the vector that is used alone; None for all.
        keep_norm: `rows` if directions are removed from weights whose rows keep their norms: see
            `sea_export.importing.norm_keeping_ablation`; None if they do not.
        revision: the revision of the model on the Hub.
        trust_remote_code: whether code that comes with the model may run.

    Returns:
        The edit, which names the model and the file.

    Raises:
        InputError: the file or the model is not usable, something has to be said by an argument, or the model has no
            place for such an edit.
    """
    options = ImportOptions(as_, coefficient, layers, site, numbering, source_layer, keep_norm)
    read = read_source(Path(source), options)
    with open_base(str(model), revision=revision, trust_remote_code=trust_remote_code) as base:
        return imported_edit(read, base, options)


def read_source(source: Path, options: ImportOptions) -> SourceFile | AdapterSource:
    """Reads what is to be imported.

    Args:
        source: a file of vectors, or the directory of an adapter.
        options: what vectors mean.

    Raises:
        InputError: see `read_source_file` and `read_adapter_source`; or the options do not say what it means.
    """
    form = check_source_file(source)
    options.meaning(form, source.name)
    return read_adapter_source(source) if form == ADAPTER_FORM else read_source_file(source)


def imported_edit(source: SourceFile | AdapterSource, base: Base, options: ImportOptions) -> SpectralEdit:
    """Like `import_edit`, with a source that was read and a model that is open.

    Args:
        source: what `read_source` gave.
        base: the model.
        options: what vectors mean.

    Raises:
        InputError: see `import_edit`.
    """
    if isinstance(source, AdapterSource):
        return adapter_edit(source, base, options.coefficient)
    return _edit_of_vectors(source, base, options)


def _edit_of_vectors(file: SourceFile, base: Base, options: ImportOptions) -> SpectralEdit:
    model = base.skeleton
    meaning = options.meaning(file.form, file.name)
    layer_count = len(decoder_layers(model)[1])
    found = source_vectors(file, layer_count, hidden_size(model.config), options)
    edits: dict[Target, list[LayerEdit]] = {}
    changes: dict[str, list[WeightChange]] = {}
    if meaning == "ablate":
        rows, targets = _ablated(file, found, base, layer_count, options)
        if options.keep_norm is None:
            edits = {target: [vector_layer_edit(rows, "ablate", options.coefficient)] for target in targets}
        else:
            changes = norm_keeping_changes(base, base.output_projections(targets), rows, options.coefficient)
    else:
        edits = _of_layers(file, found, base, layer_count, meaning, options)
    record: dict[str, object] = {
        "source": file.name,
        "sha256": file.sha256,
        "form": file.form,
        "meaning": meaning,
        "coefficient": float(options.coefficient),
        "site": options.site,
        "numbering": found.numbering,
        "source_layer": options.source_layer,
    }
    if options.keep_norm is not None:
        record["keep_norm"] = options.keep_norm
    edit = SpectralEdit(EditedLayers(edits), {"versions": library_versions()}, ChangedWeights(changes))
    record["layers"] = list(edit.decoder_layers)
    return with_weight_digests(replace(edit, provenance={"imported": record, **edit.provenance}), base)


def _of_layers(
    file: SourceFile, found: SourceVectors, base: Base, layer_count: int, meaning: str, options: ImportOptions
) -> dict[Target, list[LayerEdit]]:
    """The edits of blocks by the vectors of their own layers, or by those that the file has for all."""
    vectors = _chosen(file, found, layer_count, options)
    with_mlp = set(layers_with(base.skeleton, "mlp")) if options.site == "residual" else set()
    targets = {layer: Target(layer, _component(layer, options.site, with_mlp)) for layer in vectors}
    if options.site == "residual":
        _check_sums(base, targets.values())
    edits = {}
    for layer, target in targets.items():
        with errors_of(target):
            edits[target] = [vector_layer_edit(vectors[layer], meaning, options.coefficient)]
    return edits


def _component(layer: int, site: str, with_mlp: set[int]) -> str:
    """The block of a layer whose output is edited."""
    if site != "residual":
        return site
    return "mlp" if layer in with_mlp else "attention"


def _chosen(file: SourceFile, found: SourceVectors, layer_count: int, options: ImportOptions) -> Mapping[int, Tensor]:
    """The vectors (k, d) of each layer that is to be edited, without those that are zero."""
    wanted = None if options.layers is None else LayerChoice.parse(options.layers, layer_count).candidates
    if found.alone is not None:
        if wanted is None:
            raise InputError(f"--layers: {file.name} does not say to which layers its vector belongs. Choose some.")
        return dict.fromkeys(wanted, found.alone)
    assert found.by_layer is not None
    by_layer = {layer: rows for layer, rows in found.by_layer.items() if rows.any()}
    if missing := [layer for layer in wanted or () if layer not in by_layer]:
        raise InputError(f"--layers: {file.name} has no vector of layer {missing[0]}. Choose others.")
    chosen = {layer: rows for layer, rows in by_layer.items() if wanted is None or layer in wanted}
    if -1 in chosen:
        raise InputError(
            f"--layers: {file.name} has a vector of what the embedding gives, to which nothing can be added. Choose "
            "layers without it, such as all."
        )
    if not chosen:
        raise InputError(f"{file.name}: all of its vectors are zero, which changes nothing. Give others.")
    return chosen


def _check_sums(base: Base, targets: Iterable[Target]) -> None:
    """Refuses to add to the residual stream after a layer where no block of it does that."""
    for projection, error in sum_errors(base.skeleton, base.output_projections(targets)):
        if not error <= LARGEST_SUM_ERROR:
            raise InputError(
                f"{projection.module_name}: what it gives is read by another block or changed by a norm or a factor on "
                f"its way out of layer {projection.target.layer} (relative error {error:.1e}), so that nothing can be "
                "added to the residual stream there. Choose --site mlp or attention for vectors of what these give."
            )


def _ablated(
    file: SourceFile, found: SourceVectors, base: Base, layer_count: int, options: ImportOptions
) -> tuple[Tensor, list[Target]]:
    """The directions (k, d) of one place, and what they are removed from: everything, or the blocks of one kind."""
    rows = found.alone
    if rows is None and found.by_layer is not None and len(found.by_layer) == 1:
        (rows,) = found.by_layer.values()
    if rows is None:
        raise InputError(
            f"--source-layer: {file.name} has a vector for each of several layers, and ablate removes that of one of "
            "them everywhere. Choose it, or choose --as project, by which each layer loses its own."
        )
    model = base.skeleton
    components = COMPONENTS if options.site == "residual" else (options.site,)
    wanted = LayerChoice.parse(options.layers or "all", layer_count)
    having = {component: set(layers_with(model, component)) for component in components}
    targets = [
        Target(layer, component)
        for layer in wanted.candidates
        for component in components
        if wanted.listed or layer in having[component]
    ]
    if options.site == "residual" and options.keep_norm is None:
        targets.insert(0, EMBEDDING)
        check_ablation(model, base.output_projections(targets))
    return rows, targets
