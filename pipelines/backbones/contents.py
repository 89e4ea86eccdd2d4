"""Where in a checkpoint's content a network lies: mappings and prefixes around it are taken off by one rule.

Training code puts a network under keys (`{"model": ...}`) and under prefixes of names (`module.backbone.`), in any
order and repeated. A network is found by the tensor that embeds its patches: what stands before that tensor's name
stands before all names of the network. So the rule knows no family, and holds for timm's names as well.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The tensor that embeds patches, as every kind of ViT names it.
EMBEDDINGS = (
    "patch_embed.proj.weight",
    "patch_embed.proj.0.weight",
    "patch_embed.projection.weight",
    "conv_proj.weight",
    "conv1.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
)
# Modules that torch and Lightning put around others; they are no part of any network's own names.
_AROUND_MODULES = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
# FSDP cuts DINOv2's blocks into chunks, in which blocks keep their numbers.
_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
_ATTENTION = re.compile(r"\.\d+\.(?:[^.]+\.)*[^.]*att(?:n|ention)")
# Of several networks: running averages and teachers are what authors publish and evaluate, and timm takes the averages
# first too. MoCo v3 evaluates `base_encoder`, not the slower `momentum_encoder`.
_FIRST = ("ema", "teacher", "base_encoder")
# As torch.optim.swa_utils, timm and others call what is a running average too.
_AVERAGES = frozenset({"ema", "swa", "averaged", "average", "avg"})
# I-JEPA's paper evaluates the target encoder, which is an average; BYOL's and its likes not their target.
_TARGET_ENCODER = "target_encoder"
_LAST = frozenset({"student", "momentum", "target", "predictor", "optimizer"})
# Keys at a file's top, in the order in which timm looks for them.
_KEYS = ("state_dict", "model")
_MOST_MAPPINGS = 1 << 16
_MOST_DEPTH = 8
_TOLD = 6
CHOOSE = "--network"
ROOT = "."


class ContentsError(ValueError):
    """A content in which no network can be taken, said so that it follows `weights FILE`."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network in a file.

    Attributes:
        wrapper: the keys that lead to the mapping of its tensors, outermost first.
        prefix: what stands before its names in that mapping, with a dot at the end; empty where nothing does.
        tensors: by name, prefix and the modules around modules taken off.
    """

    wrapper: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The keys and the prefix with dots between, such as `model.teacher.backbone`; `.` for the file itself."""
        return ".".join((*self.wrapper, *filter(None, self.prefix.split(".")))) or ROOT


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The network that was taken out of a file, and what was not.

    Attributes:
        network: the one that was taken.
        names: all networks of the file, the taken one among them.
        beside: keys around the network that do not lead to it, such as `optimizer`.
        passed_over: how many tensors were not taken, by the network or the group of names that they belong to.
    """

    network: Network
    names: tuple[str, ...]
    beside: tuple[str, ...]
    passed_over: Mapping[str, int]


def choose(content: object, *, tensor_types: tuple[type, ...], wanted: str | None = None) -> Choice:
    """Take one network out of what a checkpoint holds.

    Args:
        content: a mapping, in which there may be others.
        tensor_types: of what counts as a tensor.
        wanted: the name of the network or a part of it, as the user gave it; None for the one that authors publish.

    Raises:
        ContentsError: no mapping, no tensors, no network of that name, or several and nothing that says which.
    """
    if not isinstance(content, Mapping):
        raise ContentsError(f"hold a {type(content).__name__}, not a mapping of names to tensors")
    mappings = dict(_mappings(content, tensor_types))
    found = [network for wrapper, tensors in mappings.items() for network in _networks(wrapper, tensors)]
    # A file that is no ViT's, such as a decoder alone, is taken as one mapping: nothing else tells where to begin.
    candidates = found or [
        Network(wrapper=wrapper, prefix="", tensors=tensors) for wrapper, tensors in mappings.items() if tensors
    ]
    if not candidates:
        raise ContentsError(
            f"hold no tensors under their names; a ViT's state dict is needed, and at the top are {_told(content)}"
        )
    taken = _best(_matching(candidates, wanted), several=bool(found))
    return Choice(
        network=taken,
        names=tuple(network.name for network in candidates) if found else (taken.name,),
        beside=_beside(content, taken.wrapper),
        passed_over=_passed_over(mappings, candidates if found else [taken], taken),
    )


def _mappings(
    content: Mapping[Any, Any], tensor_types: tuple[type, ...]
) -> Iterable[tuple[tuple[str, ...], dict[str, Any]]]:
    """The tensors of every mapping, by the keys that lead there; the largest depth and number are bounded."""
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    # A pickle can hold a mapping that holds itself, and one mapping in many places.
    seen = {id(content)}
    while waiting and len(seen) < _MOST_MAPPINGS:
        keys, mapping = waiting.pop(0)
        yield keys, {str(name): value for name, value in mapping.items() if isinstance(value, tensor_types)}
        for name, value in mapping.items():
            if isinstance(value, Mapping) and id(value) not in seen and len(keys) < _MOST_DEPTH:
                seen.add(id(value))
                waiting.append(((*keys, str(name)), value))


def clean_name(name: str) -> str:
    """A tensor's name without the modules that training puts around modules, and without chunks of blocks."""
    bare = ".".join(part for part in name.split(".") if part not in _AROUND_MODULES)
    return _CHUNK.sub(r"\1blocks.\2.", bare)


def _networks(wrapper: tuple[str, ...], tensors: Mapping[str, Any]) -> list[Network]:
    """The ViTs in one mapping, each under its prefix."""
    cleaned = {clean_name(name): value for name, value in tensors.items()}
    if len(cleaned) < len(tensors):  # two networks that differ in such a module alone
        cleaned = dict(tensors)
    prefixes = {
        name.removesuffix(embedding)
        for name in cleaned
        for embedding in EMBEDDINGS
        if f".{name}".endswith(f".{embedding}")
    }
    networks = []
    for prefix in sorted(prefixes):
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {
            name.removeprefix(prefix): value
            for name, value in cleaned.items()
            if name.startswith(prefix) and not (inner and name.startswith(inner))
        }
        if any(_ATTENTION.search(f".{name}") for name in own):
            networks.append(Network(wrapper=wrapper, prefix=prefix, tensors=own))
    return networks


def _matching(candidates: Sequence[Network], wanted: str | None) -> Sequence[Network]:
    """The networks that a user's word names: by the whole name first, then by its beginning, then by any part."""
    if wanted is None:
        return candidates
    given = wanted.strip(ROOT) or ROOT
    for word in dict.fromkeys((given, clean_name(f"{given}.").strip(ROOT) or ROOT)):
        for way in (
            [network for network in candidates if network.name == word],
            [network for network in candidates if network.name.startswith(f"{word}.")],
            [network for network in candidates if f".{word}." in f".{network.name}."],
        ):
            if way:
                return way
    raise ContentsError(f"hold no network {wanted!r}; {CHOOSE} takes one of {_names(candidates)}")


def _best(candidates: Sequence[Network], *, several: bool) -> Network:
    """The network that comes first by its name; of mappings that hold no ViT the largest.

    Raises:
        ContentsError: two that nothing tells apart.
    """
    ranked = sorted(candidates, key=lambda network: (_rank(network), -len(network.tensors)))
    equal = [network for network in ranked if _rank(network) == _rank(ranked[0])]
    if several and len(equal) > 1:
        raise ContentsError(
            f"hold {len(equal)} networks, and nothing says which to take: {_names(equal)}; choose with {CHOOSE}, such "
            f"as {CHOOSE} {equal[0].name}"
        )
    return ranked[0]


def _rank(network: Network) -> int:
    """Smaller for what authors publish and evaluate."""
    parts = network.name.lower().split(".")
    words = {*parts, *(word for part in parts for word in part.split("_"))}
    if _TARGET_ENCODER in parts:
        return _FIRST.index("teacher")
    if words & _LAST:
        return len(_FIRST) + len(_KEYS) + 1
    if words & _AVERAGES:
        return _FIRST.index("ema")
    known = [rank for rank, word in enumerate(_FIRST) if word in words]
    known += [len(_FIRST) + rank for rank, key in enumerate(_KEYS) if network.wrapper[:1] == (key,)]
    return min(known, default=len(_FIRST) + len(_KEYS))


def _beside(content: Mapping[Any, Any], wrapper: tuple[str, ...]) -> tuple[str, ...]:
    beside: list[str] = []
    for key in wrapper:
        beside += [name for name in content if isinstance(name, str) and name != key]
        content = next(value for name, value in content.items() if str(name) == key)
    return tuple(sorted(beside))


def _passed_over(
    mappings: Mapping[tuple[str, ...], Mapping[str, Any]], networks: Sequence[Network], taken: Network
) -> dict[str, int]:
    """How many tensors were not taken: of other networks, and of groups of names outside every network."""
    counts = {network.name: len(network.tensors) for network in networks if network is not taken}
    within = {id(value) for network in networks for value in network.tensors.values()}
    for wrapper, tensors in mappings.items():
        for name, value in tensors.items():
            if id(value) not in within:
                group = wrapper[0] if wrapper[1:] else ".".join((*wrapper, _group(clean_name(name), taken.prefix)))
                counts[group] = counts.get(group, 0) + 1
    return counts


def _group(name: str, prefix: str) -> str:
    """The part of a name that tells it from the network's: `model.head` beside a network under `model.backbone.`."""
    parts, shared = name.split("."), prefix.split(".")
    n_shared = next((i for i, (a, b) in enumerate(zip(parts, shared, strict=False)) if a != b), len(shared))
    return ".".join(parts[: n_shared + 1])


def _names(networks: Sequence[Network]) -> str:
    return _told([network.name for network in networks])


def _told(names: Iterable[object]) -> str:
    listed = [str(name)[:80] for name in names]
    more = f" and {len(listed) - _TOLD} more" if len(listed) > _TOLD else ""
    return (", ".join(map(repr, listed[:_TOLD])) or "no names") + more
