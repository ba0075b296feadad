"""Which sequences of which domains form the global batch of a step: exact shares, exact cursors.

A pure function of a seed and a small `SamplerState`; the number of workers plays no part (rank r takes rows r::W).

    >>> mixture = Mixture({"code": 1, "prose": 3})
    >>> Sampler({"code": 10, "prose": 30}, batch_size=4, seed=0, mixture=mixture).next_batch().counts()
    {'code': 1, 'prose': 3}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

import numpy as np

from opmix_ray.errors import UserError
from opmix_ray.mixture import Mixture

SHARE_BITS = 40
ONE = 1 << SHARE_BITS  # one sequence, in the unit of shares and carries
ROUNDS = 8
SMALL = 16
CHUNK = 1 << 14  # sequences apportioned in one go; keeps int64 far from overflow


@dataclass
class SamplerState:
    """Where a sampler stands; the defaults are the beginning of a run.

    Attributes:
        step: global steps done.
        consumed: sequences delivered per domain since the beginning, removed domains included. Nothing but
            delivery moves it.
        carry: asked minus delivered per domain, in 1/2**SHARE_BITS sequences; the values sum to 0.
        mixture: the shares in force.
        since_step: the step at which they came into force.
        orders: seed and name that key a domain's order; those it was first read with, whatever both are now.
    """

    step: int = 0
    consumed: dict[str, int] = field(default_factory=dict)
    carry: dict[str, int] = field(default_factory=dict)
    mixture: dict[str, float] = field(default_factory=dict)
    since_step: int = 0
    orders: dict[str, list[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal state."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplerState:
        """The inverse of `to_dict`."""
        return cls(**values)


@dataclass(frozen=True)
class Batch:
    """The rows of one global batch.

    Attributes:
        domains: all domain names, in the order of the sampler's `sizes`.
        domain_ids: shape (B,), int64, positions in `domains`.
        indices: shape (B,), int64, the sequence's number inside its domain.
        epochs: shape (B,), int64, how often the domain had been gone through before.
    """

    domains: list[str]
    domain_ids: np.ndarray
    indices: np.ndarray
    epochs: np.ndarray

    def __len__(self) -> int:
        return len(self.domain_ids)

    def counts(self) -> dict[str, int]:
        """Rows of each domain; domains without a row are left out."""
        rows = np.bincount(self.domain_ids, minlength=len(self.domains)).tolist()
        return {name: count for name, count in zip(self.domains, rows, strict=True) if count}


class Sampler:
    """Global batches whose domain counts follow the mixture and whose sequences never repeat in an epoch.

    With c = asked - delivered of a domain, in sequences: |c| <= 1 - 1/(2n - 2) under a mixture of n positive
    shares in force from the start, and -1 < c <= 1 + 1/2 + ... + 1/N for N domains whatever the changes of
    mixture; see `apportion`. A share of exactly 0 delivers exactly 0: the domain's carry goes to the others.
    A domain's size must stay the same for as long as its cursor is to mean anything.

    Args:
        sizes: training sequences per domain.
        batch_size: sequences in a global batch, B.
        seed: of the order inside domains and batches; domains that the state knows keep the order they had.
        mixture: shares by domain; domains it leaves out get 0.
        state: where to go on. If its mixture is not `mixture`, the change happens at its step. Domains it
            knows and `sizes` lacks keep their cursor until they come back.
        stream: part of every permutation's key. A probe with a stream of its own draws an independent order
            and moves nothing of the main run's.

    Raises:
        UserError: the mixture names an unknown domain or gives a share above 0 to an empty one; a size or
            `batch_size` is out of range; the state's carries do not sum to 0.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_size: int,
        seed: int,
        mixture: Mixture,
        state: SamplerState | None = None,
        stream: str = "main",
    ) -> None:
        if batch_size < 1:
            raise UserError("a batch needs at least one sequence", key="batch_size", value=batch_size)
        for name, size in sizes.items():
            if size < 0:
                raise UserError("a domain cannot have a negative number of sequences", key=name, value=size)
        state = state or SamplerState()
        if sum(state.carry.values()) != 0:
            remedy = "the state is damaged; resume from an earlier one"
            raise UserError("the carries of a sampler state must sum to 0", key="carry", remedy=remedy)
        self.batch_size = batch_size
        self.seed = int(seed)
        self.stream = stream
        self._domains = list(sizes)
        self._names = sorted(sizes)  # the order of all arrays: that of `sizes` decides nothing
        position = {name: i for i, name in enumerate(self._domains)}
        self._position = np.array([position[name] for name in self._names], dtype=np.int64)
        self._sizes = np.array([sizes[name] for name in self._names], dtype=np.int64)
        self._step = state.step
        self._absent = {name: n for name, n in state.consumed.items() if name not in position}
        self._orders = {name: [self.seed, name] for name in sizes} | state.orders
        self._consumed = np.array([state.consumed.get(name, 0) for name in self._names], dtype=np.int64)
        self._carry = np.array([state.carry.get(name, 0) for name in self._names], dtype=np.int64)
        self._enforce(mixture, state.mixture, state.since_step)

    @property
    def mixture(self) -> Mixture:
        """The mixture in force."""
        return self._mixture

    @property
    def step(self) -> int:
        """Global steps done."""
        return self._step

    @property
    def delivered(self) -> dict[str, int]:
        """Sequences delivered per domain since the beginning, removed domains included."""
        return self._absent | dict(zip(self._names, self._consumed.tolist(), strict=True))

    @property
    def state(self) -> SamplerState:
        """A copy of the state, enough to go on from here."""
        return SamplerState(
            step=self._step,
            consumed=self.delivered,
            carry=dict(zip(self._names, self._carry.tolist(), strict=True)),
            mixture=dict(self._in_force),
            since_step=self._since_step,
            orders={name: list(key) for name, key in self._orders.items()},
        )

    def set_mixture(self, mixture: Mixture) -> None:
        """Follow another mixture from the next batch on; cursors stay, carries move over.

        Raises:
            UserError: it names an unknown domain or gives a share above 0 to an empty one.
        """
        self._enforce(mixture, self._in_force, self._since_step)

    def next_batch(self) -> Batch:
        """The batch of the current step; moves the state one step on."""
        before, picks = self._consumed, self._advance(self.batch_size)
        nth = _occurrence(picks)
        order = _shuffled(self.batch_size, self.seed, self.stream, self._step)
        picks, nth = picks[order], nth[order]
        self._step += 1
        sizes = self._sizes[picks]
        epochs, positions = np.divmod(before[picks] + nth, sizes)
        indices = permute(positions, sizes, self._keys(picks, epochs))
        return Batch(list(self._domains), self._position[picks], indices, epochs)

    def skip(self, steps: int) -> None:
        """Move the state `steps` steps on, as if the batches had been drawn."""
        self._advance(steps * self.batch_size)
        self._step += steps

    def _enforce(self, mixture: Mixture, before: Mapping[str, float], since_step: int) -> None:
        for name, share in mixture.items():
            if name not in self._names:
                remedy = f"the domains are {', '.join(self._names)}"
                raise UserError("the mixture names an unknown domain", key=name, value=share, remedy=remedy)
        # Normalising shares once more can move their last bit, which is no change of mixture.
        pairs = [(mixture.get(name, 0.0), before.get(name, 0.0)) for name in {*mixture, *before}]
        same = all(abs(new - old) <= 1e-12 and (new > 0) == (old > 0) for new, old in pairs)
        in_force = {name: (before if same else mixture).get(name, 0.0) for name in self._names}
        shares = quantise(np.array(list(in_force.values())))
        for name, size in zip(self._names, self._sizes.tolist(), strict=True):
            if in_force[name] > 0 and size == 0:
                problem = "the domain has no training sequence but a share above 0"
                remedy = "give it data or a share of 0"
                raise UserError(problem, key=name, value=in_force[name], remedy=remedy)
        self._mixture, self._in_force = mixture, in_force
        self._since_step = since_step if same else self._step
        self._active = np.flatnonzero(shares)
        self._shares = shares[self._active]
        kept = self._carry[self._active]
        self._carry = np.zeros_like(self._carry)
        self._carry[self._active] = hand_over(kept, -int(kept.sum()))

    def _advance(self, units: int) -> np.ndarray:
        parts = [np.zeros(0, dtype=np.int64)]
        carry = self._carry[self._active]
        for start in range(0, units, CHUNK):
            picks, carry = apportion(carry, self._shares, min(CHUNK, units - start))
            parts.append(self._active[picks])
        self._carry[self._active] = carry
        result = np.concatenate(parts)
        self._consumed = self._consumed + np.bincount(result, minlength=len(self._names))
        return result

    def _keys(self, picks: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        span = int(epochs.max()) + 1
        pairs, inverse = np.unique(picks * span + epochs, return_inverse=True)
        named = ((*self._orders[self._names[pair // span]], pair % span) for pair in pairs.tolist())
        return np.stack([_key(seed, self.stream, name, epoch) for seed, name, epoch in named])[inverse]


def quantise(shares: np.ndarray) -> np.ndarray:
    """Shares as whole multiples of 1/2**SHARE_BITS, by largest remainder.

    Args:
        shares: shape (D,), summing to 1.

    Returns:
        Shape (D,), int64, summing to exactly 2**SHARE_BITS; 0 stays 0 and anything above it is at least 1.
    """
    scaled = shares * ONE  # exact: a power of two
    whole = np.floor(scaled).astype(np.int64)
    remainder = scaled - whole
    whole = np.where((shares > 0) & (whole == 0), 1, whole)
    missing = ONE - int(whole.sum())
    if missing > 0:
        first = np.argsort(np.where(shares > 0, -remainder, np.inf), kind="stable")
        whole[first[:missing]] += 1
    elif missing < 0:
        whole[np.argmax(whole)] += missing
    assert whole.sum() == ONE
    return whole


def hand_over(carry: np.ndarray, amount: int) -> np.ndarray:
    """Level out `amount`: a credit raises the least carries, a debt lowers the greatest ones.

    With `carry.sum() + amount == 0` no carry above 0 goes up and none below 0 goes down, so the bounds that
    `apportion` gives outlive the change.

    Args:
        carry: shape (n,), int64.
        amount: to be added to the sum.
    """
    if amount < 0:
        return -hand_over(-carry, -amount)
    carry = carry.copy()
    order = np.argsort(carry, kind="stable")
    steps = np.diff(carry[order]) * np.arange(1, len(carry))  # to lift the first k to the level of the next
    lifted = int(np.searchsorted(np.cumsum(steps), amount, side="right")) + 1
    chosen = order[:lifted]
    level, rest = divmod(int(carry[chosen].sum()) + amount, lifted)
    carry[chosen] = level
    carry[chosen[:rest]] += 1
    return carry


def apportion(carry: np.ndarray, shares: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Give out `units` sequences one by one to domains with shares above 0.

    Tijdeman's algorithm for the chairman assignment problem (Discrete Mathematics 32, 1980): with every unit
    each domain's share joins its carry c; those with c >= 1/(2n - 2) may be chosen, and the one whose carry
    would be first to reach 1 - 1/(2n - 2) is. From carries of 0 this keeps |c| <= 1 - 1/(2n - 2) after every
    unit, which is the best possible, so any span of units is less than 2 off, and at most 1 for n = 2.
    (Less than 1 for every span is out of reach for three and more domains with unequal shares, but for
    special cases: Fraenkel's balanced words.)

    A change of mixture can leave several domains at the limit at once; then the greatest carry goes first.
    Let M_k be the sum of the k greatest of N carries; M_N = 0. After a unit, M_k is no more than it was, or
    at most k/(k+1) (M_(k+1) + 1), or below k because no domain was at the limit. Hence always
    M_k <= k (1 + 1/(k+1) + ... + 1/N), and for k = 1: c <= 1 + 1/2 + ... + 1/N, whatever the changes.
    Nothing is chosen unless c > 0, so c > -1.

    Args:
        carry: shape (n,), int64, in 1/2**SHARE_BITS sequences, summing to 0.
        shares: shape (n,), int64, positive, summing to 2**SHARE_BITS.
        units: how many; splitting them over several calls changes nothing.

    Returns:
        The domain of each unit, shape (units,), int64, and the carries after the last.
    """
    n = len(shares)
    if n == 1:
        return np.zeros(units, dtype=np.int64), carry
    may, must = -(-ONE // (2 * n - 2)), ONE - ONE // (2 * n - 2)  # eligible from, late from
    count = np.maximum((carry + shares * units - may) // ONE + 1, 0)
    owner = np.repeat(np.arange(n), count)
    lack = _occurrence(owner) * ONE - carry[owner]
    opens = -(-(may + lack) // shares[owner])  # the unit at which the k-th turn of a domain becomes eligible
    closes = -(-(must + lack) // shares[owner])
    order = np.argsort(opens, kind="stable")
    waiting = list(zip(opens[order].tolist(), (closes * n + owner)[order].tolist(), strict=True))[::-1]
    gain, start, given = shares.tolist(), carry.tolist(), [0] * n
    picks = []
    heap: list[int] = []  # closing time * n + domain
    for now in range(1, units + 1):
        while waiting and waiting[-1][0] <= now:
            heappush(heap, waiting.pop()[1])
        turn = heappop(heap)
        if heap and heap[0] < (now + 1) * n:
            late = [turn]
            while heap and heap[0] < (now + 1) * n:
                late.append(heappop(heap))
            carries = [start[t % n] + now * gain[t % n] - given[t % n] * ONE for t in late]
            turn = late.pop(carries.index(max(carries)))
            for other in late:
                heappush(heap, other)
        given[turn % n] += 1
        picks.append(turn % n)
    return np.array(picks, dtype=np.int64), carry + shares * units - np.array(given, dtype=np.int64) * ONE


def permute(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Keyed permutations of range(size), row by row and in constant memory.

    A Feistel network on the least even number of bits that holds the size, walked along its cycle until it
    falls inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002); up to SMALL, where so few
    bits would not mix, the rank among the hashes of all positions.

    Args:
        positions: shape (B,), each in [0, size).
        sizes: shape (B,), at least 1.
        keys: shape (B, ROUNDS), uint64.

    Returns:
        Shape (B,), int64, each in [0, size); one to one for rows of the same size and key.
    """
    value, limit = positions.astype(np.uint64), sizes.astype(np.uint64)
    half = ((np.frexp((sizes - 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    small, rows = np.flatnonzero(sizes <= SMALL), np.flatnonzero(sizes > SMALL)
    hashes = _mix(_mix(keys[small, :1] + np.arange(SMALL, dtype=np.uint64)) ^ keys[small, 1:2])
    smaller = hashes < np.take_along_axis(hashes, positions[small, None], axis=1)
    value[small] = (smaller & (np.arange(SMALL) < sizes[small, None])).sum(axis=1)
    while rows.size:
        value[rows] = _feistel(value[rows], half[rows], keys[rows])
        rows = rows[value[rows] >= limit[rows]]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for key in keys.T:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 on uint64."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@lru_cache(maxsize=4096)
@lru_cache(maxsize=1 << 14)
def _key(*parts: int | str) -> np.ndarray:
    """ROUNDS words of key material, the same on every machine and in every process; not to be written to."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _shuffled(n: int, seed: int, stream: str, step: int) -> np.ndarray:
    """A permutation of range(n) for the order inside the batch of a step, shape (n,)."""
    rows = np.arange(n, dtype=np.uint64)
    first, second = _key(seed, stream, step)[:2]
    return np.argsort(_mix(_mix(rows + first) ^ second), kind="stable")


def _occurrence(values: np.ndarray) -> np.ndarray:
    """For each entry, how many equal ones stand before it; shape (B,)."""
    order = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[order], values[order], side="left")
    nth = np.empty(len(values), dtype=np.int64)
    nth[order] = np.arange(len(values)) - starts
    return nth
