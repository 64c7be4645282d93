"""Layer inputs that wait for the backward pass in the host's memory, copied while the GPU computes."""

from typing import Any

import torch


class ActivationOffload:
    """Holds one tensor a layer, put in layer order and taken in the opposite order.

    Without ``offload`` (or without a GPU) the tensors are held as they are. With it at most three
    are on the GPU: the one in use, and one in each direction of copying.
    """

    def __init__(self, device: Any, offload: bool) -> None:
        self.offload = offload and device.type == "cuda"
        self.device = device
        self.held: dict[int, torch.Tensor] = {}
        self.pinned: dict[int, torch.Tensor] = {}
        self.leaving: list[tuple[torch.Tensor, Any]] = []
        self.coming: tuple[int, torch.Tensor, Any] | None = None
        self.stream = torch.cuda.Stream(device) if self.offload else None
        self.shape: torch.Size | None = None

    def reserve(self, layers: int, numbers: int, dtype: torch.dtype) -> None:
        """Have memory for this many layers' inputs of at most this many numbers, before it is needed."""
        if self.offload:
            for number in range(layers):
                self.pinned[number] = torch.empty(numbers, dtype=dtype, pin_memory=True)

    def put(self, number: int, x: torch.Tensor) -> None:
        if not self.offload:
            self.held[number] = x
            return
        self.shape = x.shape
        host_copy = self._pinned(number, x)
        self.stream.wait_stream(torch.cuda.current_stream())  # type: ignore[union-attr]
        with torch.cuda.stream(self.stream):
            host_copy.copy_(x, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        # The copy reads x on its own stream: x is let go once this stream has waited for it.
        self.leaving.append((x, done))
        if len(self.leaving) > 1:
            torch.cuda.current_stream().wait_event(self.leaving.pop(0)[1])

    def all_put(self) -> None:
        """Nothing more will be put before the first is taken."""
        while self.leaving:
            torch.cuda.current_stream().wait_event(self.leaving.pop()[1])

    def take(self, number: int) -> torch.Tensor:
        if not self.offload:
            return self.held.pop(number)
        self.all_put()
        if self.coming is None or self.coming[0] != number:
            self._fetch(number)
        assert self.coming is not None
        _, x, done = self.coming
        torch.cuda.current_stream().wait_event(done)
        self.coming = None
        if number > 0:
            self._fetch(number - 1)
        return x

    def clear(self) -> None:
        """The pass is over: nothing is held any more, the pinned memory stays for the next."""
        self.held.clear()
        self.coming = None

    def _fetch(self, number: int) -> None:
        assert self.stream is not None and self.shape is not None
        x = torch.empty(self.shape, dtype=self.pinned[number].dtype, device=self.device)
        # What x's memory held before may still be read by this stream.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            x.copy_(self.pinned[number][: self.shape.numel()].view(self.shape), non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        self.coming = (number, x, done)

    def _pinned(self, number: int, x: torch.Tensor) -> torch.Tensor:
        buffer = self.pinned.get(number)
        if buffer is None or buffer.numel() < x.numel():
            self.pinned[number] = torch.empty(x.numel(), dtype=x.dtype, pin_memory=True)
        return self.pinned[number][: x.numel()].view(x.shape)
