"""Forward passes that go through a model together: all through one decoder layer, then all through the next.

So only one layer must be in memory at a time, and an edit that is computed from all passes at one module can be applied
to its output before any pass goes on. A pass is the model's own forward call, suspended before every decoder layer, and
after other modules if asked. So masks, positions and everything that a family computes around and between its layers
are the model's own, in the model's own order.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import recursively_apply, send_to_device
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from sea_export.errors import SeaExportError
from sea_export.model.architecture import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["END", "ForwardHook", "HiddenStates", "SuspendedPass", "advance_together", "mapped_copy", "stops_installed"]

ForwardHook = Callable[[nn.Module, object, Any], Any]

END = "end"
"""The stop of a pass that has returned."""


class SuspendedPass:
    """One forward call that runs from stop to stop."""

    def __init__(self, call: Callable[[], object]) -> None:
        """Nothing runs yet.

        Args:
            call: the whole forward call, of a model inside the context of `stops_installed`. Gradients must be off
                until it is over.
        """
        self.stop: object = None
        """The stop where the pass waits: the key with which it was installed, `END`, or None before the start."""
        self._greenlet = greenlet(call)

    def advance(self) -> None:
        """Runs up to the next stop."""
        stop = self._greenlet.switch()
        self.stop = END if self._greenlet.dead else stop

    def close(self) -> None:
        """Ends a pass that has not returned."""
        if self._greenlet:
            self._greenlet.throw(GreenletExit)


def advance_together(passes: Iterable[SuspendedPass]) -> object:
    """Runs passes one after the other, each up to its next stop.

    Returns:
        the stop of all of them.

    Raises:
        SeaExportError: they come to different stops.
    """
    stops = set()
    for one in passes:
        one.advance()
        stops.add(one.stop)
    if len(stops) != 1:
        raise SeaExportError(
            f"the model: its passes came to different stops ({', '.join(map(str, stops))}), because its layers do not "
            "run one after the other. Choose --no-layerwise and no --sequential."
        )
    return stops.pop()


@dataclass(frozen=True)
class HiddenStates:
    """Where the output of a layer is kept while its pass waits."""

    device: torch.device | None
    """Where layers compute; then states are kept on the CPU. None if layers compute on the CPU."""
    directory: Path | None
    """Where files with the states are made, which are mapped into memory; None keeps states in memory."""

    def fetched(self, arguments: Any) -> Any:
        """The arguments of a layer, on the device where it computes."""
        return arguments if self.device is None else send_to_device(arguments, self.device)

    def kept(self, output: Any) -> Any:
        """The output of a layer, as it is kept while the pass waits."""
        return recursively_apply(self._keep, output) if self.device or self.directory else output

    def _keep(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self.directory is None else mapped_copy(tensor, self.directory)


def mapped_copy(tensor: Tensor, directory: Path) -> Tensor:
    """A copy of a tensor on the CPU, in a file without a name that is mapped into memory.

    Args:
        tensor: at least one number.
        directory: where the file is made.
    """
    size = tensor.numel() * tensor.element_size()
    with tempfile.TemporaryFile(dir=directory) as file:
        file.truncate(size)
        mapping = mmap.mmap(file.fileno(), size)
    kept = torch.frombuffer(mapping, dtype=tensor.dtype).view(tensor.shape)
    kept.copy_(tensor)
    mapping.madvise(mmap.MADV_DONTNEED)  # the file has them, so that they need no memory until they are read
    return kept


@contextmanager
def stops_installed(
    model: PreTrainedModel,
    states: HiddenStates,
    outputs: Mapping[object, tuple[nn.Module, ForwardHook]] | None = None,
) -> Iterator[None]:
    """Makes passes stop before every decoder layer and after some modules, until the context ends.

    The stop before a layer is its number.

    Args:
        model: the model. Its weights may be loaded and removed while passes wait.
        states: keeps the outputs of layers.
        outputs: for each further stop, the module after which it is, and a forward hook of the module that is called
            when the pass goes on.
    """
    with ExitStack() as hooks:
        for stop, (module, hook) in (outputs or {}).items():
            hooks.callback(module.register_forward_hook(_stop_after(stop, hook)).remove)
        for index, layer in enumerate(decoder_layers(model)[1]):
            entering = layer.register_forward_pre_hook(_stop_before(index, states), with_kwargs=True, prepend=True)
            hooks.callback(entering.remove)
            hooks.callback(layer.register_forward_hook(lambda module, inputs, output: states.kept(output)).remove)
        yield


def _stop_before(index: int, states: HiddenStates) -> Callable[..., Any]:
    def stop(module: nn.Module, arguments: Any, keywords: Any) -> Any:
        _wait(index)
        return states.fetched(arguments), states.fetched(keywords)

    return stop


def _stop_after(stop: object, hook: ForwardHook) -> ForwardHook:
    def wait(module: nn.Module, inputs: object, output: Any) -> Any:
        _wait(stop)
        return hook(module, inputs, output)

    return wait


def _wait(stop: object) -> None:
    """Suspends the running pass until it is advanced."""
    scheduler = getcurrent().parent
    assert scheduler is not None, "a module with a stop ran outside a SuspendedPass"
    scheduler.switch(stop)
