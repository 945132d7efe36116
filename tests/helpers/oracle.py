"""The update rule again, slowly: Python loops and exact fractions, written from the rule's text and nothing else.

Shares no code with `hf_srigl.rule.topology`; the two are compared on random cases.
"""

import math
from fractions import Fraction


def exact(fraction):
    """The decimal number the user wrote, not its nearest float: 0.29 * 100 is 29."""
    return Fraction(str(round(float(fraction), 12)))


def update_mask(weight, mask, grad, *, budget, drop_fraction, min_salient=None):
    """Nested lists (N, K) in, nested lists of bool out."""
    n_out, n_in = len(mask), len(mask[0])
    cells = [(n, k) for n in range(n_out) for k in range(n_in)]
    flat = {cell: i for i, cell in enumerate(cells)}

    # 1. how many
    active = [c for c in cells if mask[c[0]][c[1]]]
    inactive = [c for c in cells if not mask[c[0]][c[1]]]
    n_drop = math.floor(exact(drop_fraction) * len(active))
    n_keep = len(active) - n_drop

    # 2. kept and candidates, over the whole layer; ties to the lower flat index
    by_weight = sorted(active, key=lambda c: (-abs(weight[c[0]][c[1]]), flat[c]))
    by_grad = sorted(inactive, key=lambda c: (-abs(grad[c[0]][c[1]]), flat[c]))
    kept = set(by_weight[:n_keep])
    candidates = set(by_grad[:n_drop])

    # 3. and 4. salient weights decide which rows stay
    rows = list(range(n_out))
    if min_salient is not None:
        salient = {n: sum(1 for c in kept | candidates if c[0] == n) for n in rows}
        rows_staying = [n for n in rows if salient[n] >= min_salient]
        least = math.ceil(Fraction(budget, n_in))
        if len(rows_staying) < least:
            rows_staying = sorted(sorted(rows, key=lambda n: (-salient[n], n))[:least])
        rows = rows_staying

    # 5. the fan-in
    fan_in = max(1, min(n_in, budget // len(rows)))

    # 6. each row on its own
    new = [[False] * n_in for _ in range(n_out)]
    for n in rows:
        row_kept = [c for c in kept if c[0] == n]
        row_kept = sorted(row_kept, key=lambda c: (-abs(weight[c[0]][c[1]]), c[1]))[:fan_in]
        others = [(n, k) for k in range(n_in) if (n, k) not in set(row_kept)]
        others.sort(key=lambda c: (-abs(grad[c[0]][c[1]]), c[1]))
        for _, k in row_kept + others[: fan_in - len(row_kept)]:
            new[n][k] = True
    return new
