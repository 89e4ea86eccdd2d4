"""How a table of relative positions comes to another grid: SimMIM's and BEiT's rule, timm's, and transformers'."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64

# Of families that store such a table instead of a position embedding.
OWN, TIMM, TRANSFORMERS = "relative-bias", "relative-bias-timm", "relative-bias-transformers"
# A cubic spline without a knot at its second and last but one point needs so many.
_FEWEST_POINTS = 4
_NARROWEST, _WIDEST, _CLOSE = 1.01, 1.5, 1e-6

_HOW = {
    OWN: "relative bias by cubic splines over geometric distances",
    TIMM: "relative bias by lines over geometric distances",
    TRANSFORMERS: "relative bias bilinear",
}
RULES = frozenset(_HOW)


def text(rule: str, stored: tuple[int, int], wanted: tuple[int, int]) -> str:
    """A rule at work, as the identity records it."""
    if stored == wanted:
        return "as stored"
    return f"{_HOW[rule]} from {stored[0]}x{stored[1]} to {wanted[0]}x{wanted[1]} ({rule})"


def resample_table(
    table: Float[torch.Tensor, "distances heads"], *, stored: tuple[int, int], wanted: tuple[int, int], rule: str
) -> Float[torch.Tensor, "wanted_distances heads"]:
    """Bring a table of relative positions to another grid.

    Args:
        table: a bias for each distance between patches, by rows, and behind them those of the class token, which are
            kept as they are.
        stored, wanted: (height, width) of the patch lattices.
        rule: one of `RULES`.
    """
    if stored == wanted:
        return table
    sources, targets = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (stored, wanted))
    n_between = sources[0] * sources[1]
    lattice = table[:n_between].T.reshape(-1, *sources)
    if rule == TRANSFORMERS:
        resampled = torch.nn.functional.interpolate(lattice[None], size=targets, mode="bilinear")[0]
    else:
        weights = _spline_weights if rule == OWN else _line_weights
        down, right = (
            _along(source, target, weights).to(table.device) for source, target in zip(sources, targets, strict=True)
        )
        resampled = (down @ lattice.double() @ right.T).to(table.dtype)
    return torch.cat([resampled.reshape(len(resampled), -1).T, table[n_between:]])


_Weights = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _along(source: int, target: int, weights: _Weights) -> Float64[torch.Tensor, "target source"]:
    """What each distance of the new grid takes of those of the old one, along one axis.

    The old distances are spread in geometric steps, so that near ones keep their place and far ones fill the new range;
    the new ones that rounding leaves outside take the last.
    """
    places = _geometric(source, target)
    wanted = torch.arange(target, dtype=torch.float64) - target // 2
    return weights(places, wanted.clamp(places[0], places[-1]))


def _geometric(source: int, target: int) -> Float64[torch.Tensor, " source"]:
    """SimMIM @0e71746, remap_pretrained_keys_vit: steps that grow by a factor found by bisection."""
    low, high, factor = _NARROWEST, _WIDEST, _NARROWEST
    while high - low > _CLOSE:
        factor = (low + high) / 2
        reach = (1 - factor ** (source // 2)) / (1 - factor)
        low, high = (low, factor) if reach > target // 2 else (factor, high)
    steps = torch.tensor([factor**index for index in range(source // 2)], dtype=torch.float64)
    distances = steps.cumsum(0)
    return torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])


def _line_weights(places: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    left, share = _between(places, wanted)
    eye = torch.eye(len(places), dtype=torch.float64)
    return (1 - share)[:, None] * eye[left] + share[:, None] * eye[left + 1]


def _spline_weights(places: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Interpolating cubic splines, "not a knot" at the ends, as FITPACK's are that SimMIM calls through scipy."""
    if len(places) < _FEWEST_POINTS:
        return _line_weights(places, wanted)
    second = _second_derivatives(places)
    left, share = _between(places, wanted)
    width = (places[left + 1] - places[left])[:, None]
    a, b = (1 - share)[:, None], share[:, None]
    eye = torch.eye(len(places), dtype=torch.float64)
    bend = (a**3 - a) * second[left] + (b**3 - b) * second[left + 1]
    return a * eye[left] + b * eye[left + 1] + bend * width**2 / 6


def _between(places: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which interval each wanted place is in, and how far through it, from 0 to 1."""
    left = (torch.searchsorted(places, wanted, right=True) - 1).clamp(0, len(places) - 2)
    return left, (wanted - places[left]) / (places[left + 1] - places[left])


def _second_derivatives(places: torch.Tensor) -> torch.Tensor:
    """The spline's second derivative at each place, as weights of the values there."""
    n, steps = len(places), places.diff()
    system, values = torch.zeros(2, n, n, dtype=torch.float64)
    for row in range(1, n - 1):
        before, after = steps[row - 1], steps[row]
        system[row, row - 1 : row + 2] = torch.stack([before, 2 * (before + after), after])
        values[row, row - 1 : row + 2] = 6 * torch.stack([1 / before, -1 / before - 1 / after, 1 / after])
    # The third derivative does not jump at the second and the last but one place.
    system[0, :3] = torch.stack([steps[1], -(steps[0] + steps[1]), steps[0]])
    system[-1, -3:] = torch.stack([steps[-1], -(steps[-1] + steps[-2]), steps[-2]])
    solved: torch.Tensor = torch.linalg.solve(system, values)
    return solved
