"""A valid patch of a tiny output, and ways to change it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import sea_export
from tests.helpers.checkpoint_files import join_file, split_file
from tests.helpers.template_folders import scratch_folder, template_folder

DESCRIPTION, DIGEST = "sea_export_patch", "sea_export_patch_sha256"


@functools.cache
def patch_bytes() -> bytes:
    """The patch of the template of an output, whose base is that of a model."""
    with scratch_folder() as folder:
        sea_export.make_patch(template_folder("output"), folder / "p.safetensors", base=template_folder("model"))
        return (folder / "p.safetensors").read_bytes()


def description_of(contents: bytes) -> Any:
    """What a patch says."""
    return json.loads(split_file(contents)[0]["__metadata__"][DESCRIPTION])


def with_description(contents: bytes, described: Any) -> bytes:
    """The same patch with another description, and its digest."""
    header, data = split_file(contents)
    text = json.dumps(described)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    header["__metadata__"] |= {DESCRIPTION: text, DIGEST: digest}
    return join_file(header, data)


def described(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """Changes what a patch says, or replaces it by what the function gives."""

    def apply(contents: bytes) -> bytes:
        whole = description_of(contents)
        changed = change(whole)
        return with_description(contents, whole if changed is None else changed)

    return apply
