"""Where tensors lie: a buffer for each, and one for the parts of a joined tensor together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from .kernel_plan import Buffer, Layout, Size, View
from .open_step import Form


@dataclass(frozen=True)
class Tensors:
    """The tensors that are stored.

    Attributes:
        forms: of each tensor, those that are read.
        joined: the parts of each joined tensor, in the order of their channels.
        layout_of: gives the layout of a tensor, and ``size_of`` its spatial size.
    """

    forms: Mapping[str, Collection[Form]]
    joined: Mapping[str, tuple[str, ...]]
    layout_of: Callable[[str], Layout]
    size_of: Callable[[str], Size]


@dataclass
class _Placement:
    """What was placed so far."""

    tensors: Tensors
    buffers: dict[str, Buffer] = field(default_factory=dict)
    views: dict[tuple[str, Form], View] = field(default_factory=dict)
    stores: dict[str, list[View]] = field(default_factory=dict)

    def join(self, name: str, form: Form) -> None:
        """Place a joined tensor in one buffer; its parts are stored into it, and read from it where the form is the same."""
        whole = self.buffer(name, form)
        self.views[name, form] = whole
        begin = 0
        for part in self.tensors.joined[name]:
            layout = self.tensors.layout_of(part)
            view = View(whole.buffer, begin, layout, form)
            self.stores.setdefault(part, []).append(view)
            if form in self.tensors.forms.get(part, ()):
                self.views.setdefault((part, form), view)
            begin += layout.width

    def buffer(self, name: str, form: Form) -> View:
        """Return all of a new buffer for a tensor."""
        layout, label = self.tensors.layout_of(name), f"b{len(self.buffers)}"
        self.buffers[label] = Buffer("i8" if form else "f16", self.tensors.size_of(name), layout.width)
        return View(label, 0, layout, form)


def placed(tensors: Tensors) -> tuple[dict[str, Buffer], dict[tuple[str, Form], View], dict[str, list[View]]]:
    """Return the buffers by their names, what is read for each tensor and form, and where each tensor is stored."""
    placement = _Placement(tensors)
    for name, forms in tensors.forms.items():
        for form in forms:
            if name in tensors.joined:
                placement.join(name, form)
    for name, forms in tensors.forms.items():
        for form in forms:
            if (name, form) not in placement.views:
                placement.views[name, form] = view = placement.buffer(name, form)
                placement.stores.setdefault(name, []).append(view)
    return placement.buffers, placement.views, placement.stores
