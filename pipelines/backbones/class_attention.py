"""What the class token attends to, seen while a model runs: one row of each head, never the whole square of tokens."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch.overrides import TorchFunctionMode

from pipelines.backbones.weight_files import BackboneError

Seen = dict[int, Float32[torch.Tensor, "views heads patches"]]
_SOFTMAX = frozenset({torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax})


@contextlib.contextmanager
def class_attention(blocks: Sequence[Any], layers: Sequence[int], *, n_heads: int, n_prefix: int) -> Iterator[Seen]:
    """While a model runs, collect the attention of its first token to its patches.

    It is taken where a block hands queries and keys to torch, after whatever the family does to them (norms, rotations)
    and with whatever it adds (relative positions), so that one way serves all families and both kernels.

    Args:
        blocks: of the model, each with an `attn`.
        layers: block numbers counted from 1, ascending.
        n_heads: of a block.
        n_prefix: tokens before the patches, the class token first among them.

    Returns:
        Layer -> [views, heads, patches], filled while the model runs. Softmaxed over all tokens, so that a head's
        patches sum to what it does not give to prefix tokens.

    Raises:
        BackboneError: a block computes attention in another way than one product of queries and keys.
    """
    watch = _Watch(n_heads, n_prefix)
    hooks = [
        hook
        for layer in layers
        for hook in (
            blocks[layer - 1].attn.register_forward_pre_hook(watch.enter(layer)),
            blocks[layer - 1].attn.register_forward_hook(watch.leave),
        )
    ]
    try:
        with watch:
            yield watch.seen
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if watch.counts.get(layer, 0) != 1:
            raise BackboneError(
                f"block {layer} of this model does not compute its attention in one product of queries and keys, so "
                "that of its class token cannot be told; leave `attention` out of --tokens."
            )


class _Watch(TorchFunctionMode):
    """Looks at each call of torch inside a watched block."""

    def __init__(self, n_heads: int, n_prefix: int) -> None:
        super().__init__()
        self._n_heads, self._n_prefix = n_heads, n_prefix
        self._layer: int | None = None
        self.seen: Seen = {}
        self.counts: dict[int, int] = {}

    def enter(self, layer: int) -> Callable[..., None]:
        """A hook that runs before a block's attention."""

        def hook(_module: Any, _inputs: Any) -> None:
            self._layer = layer

        return hook

    def leave(self, _module: Any, _inputs: Any, _outputs: Any) -> None:
        """A hook that runs after a block's attention."""
        self._layer = None

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function as it is, and keep a row of what is attention."""
        options = options or {}
        result = function(*arguments, **options)
        if self._layer is None:
            return result
        if function is torch.nn.functional.scaled_dot_product_attention:
            self._keep(_first_row(*arguments, **options))
        elif function in _SOFTMAX and result.ndim == 4:
            self._keep(result[:, :, 0].float())
        return result

    def _keep(self, row: Float32[torch.Tensor, "views heads tokens"]) -> None:
        assert self._layer is not None
        if row.shape[1] != self._n_heads:
            return  # something else that is softmaxed
        # A copy: the square that it is a row of must not stay.
        self.seen[self._layer] = row[..., self._n_prefix :].clone()
        self.counts[self._layer] = self.counts.get(self._layer, 0) + 1


def _first_row(
    query: torch.Tensor,
    key: torch.Tensor,
    _value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **_others: Any,
) -> Float32[torch.Tensor, "views heads tokens"]:
    """The first token's attention, in float32."""
    assert not is_causal
    scaled = query[:, :, :1].float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    # A sum over products, not a matrix product: its order does not depend on the batch, and autocast leaves it alone.
    logits = (scaled * key.float()).sum(dim=-1)
    if attn_mask is not None:
        row = attn_mask[..., 0, :]
        logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row.float()
    return logits.softmax(dim=-1)
