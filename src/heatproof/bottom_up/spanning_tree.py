"""Minimum spanning trees of images, and the passes over them: from the leaves to the root and back.

Pixels are numbered row by row and joined to their 4 neighbours. All loops are linear in pixels.
"""

import numpy as np

from heatproof.bottom_up.compiled import compiled

PAIRS = 8
"""Paths to the border that a pixel remembers: those of which none has a smaller range on both sides."""


@compiled
def spanning_tree(image):
    """Minimum spanning tree of the pixel grid, by Prim's algorithm with one queue per weight.

    The weight of an edge is the largest difference among its channels, a whole number from 0 to 255, so that the
    lightest edge comes from 256 queues instead of a heap. Of equal edges the one that was seen first is taken: on flat
    ground the tree grows in circles, and its paths stay short.

    Args:
        image: `(H, W, C)` uint8, at most 2²⁹ pixels.

    Returns:
        order: `(H·W,)` int32, pixels in the order in which they joined the tree; parents come before children.
        parent: `(H·W,)` int32, −1 for the root, pixel 0.
        weight: `(H·W,)` uint8 of the edge to the parent.
    """
    height, width, channels = image.shape
    count = height * width
    order = np.empty(count, np.int32)
    parent = np.full(count, -1, np.int32)
    weight = np.zeros(count, np.uint8)
    inside = np.zeros(count, np.bool_)
    head = np.full(256, -1, np.int64)
    tail = np.full(256, -1, np.int64)
    after = np.empty(4 * count, np.int32)  # edge 4·pixel + direction -> the next in its queue
    lightest = 256
    node, found = 0, 0
    while True:
        inside[node] = True
        order[found] = node
        found += 1
        row, column = node // width, node % width
        for direction in range(4):
            if direction == 0:
                r, c = row, column + 1
            elif direction == 1:
                r, c = row + 1, column
            elif direction == 2:
                r, c = row, column - 1
            else:
                r, c = row - 1, column
            if r < 0 or c < 0 or r >= height or c >= width or inside[r * width + c]:
                continue
            w = 0
            for channel in range(channels):
                w = max(w, abs(np.int64(image[row, column, channel]) - np.int64(image[r, c, channel])))
            edge = 4 * node + direction
            after[edge] = -1
            if head[w] < 0:
                head[w] = edge
            else:
                after[tail[w]] = edge
            tail[w] = edge
            lightest = min(lightest, w)
        if found == count:
            return order, parent, weight
        while True:
            while head[lightest] < 0:
                lightest += 1
            edge = head[lightest]
            head[lightest] = after[edge]
            start, direction = edge // 4, edge % 4
            if direction == 0:
                node = start + 1
            elif direction == 1:
                node = start + width
            elif direction == 2:
                node = start - 1
            else:
                node = start - width
            if not inside[node]:
                parent[node] = start
                weight[node] = lightest
                break


@compiled
def _offer(high, low, count, node, other, value):
    """Extend the paths that `other` remembers to `node`, and keep those that no known one is better than."""
    for k in range(count[other]):
        top = max(high[other, k], value)
        bottom = min(low[other, k], value)
        known = count[node]
        beaten = False
        for j in range(known):
            if high[node, j] <= top and low[node, j] >= bottom:
                beaten = True
                break
        if beaten:
            continue
        kept = 0
        for j in range(known):
            if not (top <= high[node, j] and bottom >= low[node, j]):
                high[node, kept] = high[node, j]
                low[node, kept] = low[node, j]
                kept += 1
        if kept == high.shape[1]:  # full: the widest range goes
            worst, size = -1, np.int64(top) - np.int64(bottom)
            for j in range(kept):
                if np.int64(high[node, j]) - np.int64(low[node, j]) > size:
                    worst, size = j, np.int64(high[node, j]) - np.int64(low[node, j])
            if worst >= 0:
                high[node, worst] = top
                low[node, worst] = bottom
        else:
            high[node, kept] = top
            low[node, kept] = bottom
            kept += 1
        count[node] = kept


@compiled
def barrier_distance(values, order, parent, seed, pairs):
    """Least range of values, highest − lowest, among the tree paths from each pixel to a seed, in two passes.

    Keeping one path per pixel, as the paper does, is not exact: of two paths the one with the smaller range may be the
    wrong one further on. Here a pixel keeps up to `pairs` pairs (highest, lowest) of which none is inside another; the
    result is exact where no pixel needs more.

    Args:
        values: `(N, C)` uint8.
        order, parent: of `spanning_tree`.
        seed: `(N,)` bool.
        pairs: how many paths a pixel remembers.

    Returns:
        `(N,)` int32, the sum over the channels.
    """
    size, channels = values.shape
    # everything is kept in the order of the tree: parents were seen lately, and are still at hand
    place = np.empty(size, np.int32)
    for position in range(size):
        place[order[position]] = position
    up = np.empty(size, np.int32)
    for position in range(1, size):
        up[position] = place[parent[order[position]]]
    own = np.empty(size, np.uint8)
    high = np.empty((size, pairs), np.uint8)
    low = np.empty((size, pairs), np.uint8)
    count = np.empty(size, np.uint8)
    total = np.zeros(size, np.int32)
    for channel in range(channels):
        for position in range(size):
            value = values[order[position], channel]
            own[position] = value
            high[position, 0] = low[position, 0] = value
            count[position] = seed[order[position]]
        for position in range(size - 1, 0, -1):
            if not seed[order[up[position]]]:  # nothing beats a seed
                _offer(high, low, count, up[position], position, own[up[position]])
        for position in range(1, size):
            if not seed[order[position]]:
                _offer(high, low, count, position, up[position], own[position])
        for position in range(size):
            least = 255
            for k in range(count[position]):
                least = min(least, np.int64(high[position, k]) - np.int64(low[position, k]))
            total[order[position]] += least
    return total


@compiled
def smoothed(values, order, parent, weight, sigma):
    """Average of all pixels, weighed by `exp(−d/σ)` with `d` the sum of edge weights on the tree path between two.

    Args:
        values: `(N,)` float64.
        order, parent, weight: of `spanning_tree`.
        sigma: in 8-bit values.

    Returns:
        `(N,)` float64.
    """
    size = len(values)
    share = np.empty(256)
    for w in range(256):
        share[w] = np.exp(-w / sigma)
    total = values.copy()
    mass = np.ones(size)
    for position in range(size - 1, 0, -1):
        node = order[position]
        s = share[weight[node]]
        total[parent[node]] += s * total[node]
        mass[parent[node]] += s * mass[node]
    for position in range(1, size):
        node = order[position]
        s = share[weight[node]]
        # what the parent has from everywhere else: its whole less what came from here
        total[node] += s * (total[parent[node]] - s * total[node])
        mass[node] += s * (mass[parent[node]] - s * mass[node])
    return total / mass


@compiled
def reconstructed(marker, mask):
    """Morphological reconstruction by dilation: the marker grows under the mask, one step to 4 neighbours at a time, until still.

    Two scans that follow the reading order and its reverse do most of it, a queue does the rest (Vincent 1993).

    Args:
        marker: `(H, W)` float32 ≤ mask.
        mask: `(H, W)` float32.

    Returns:
        `(H, W)` float32.
    """
    height, width = mask.shape
    out = marker.copy()
    for r in range(height):
        for c in range(width):
            best = out[r, c]
            if r > 0:
                best = max(best, out[r - 1, c])
            if c > 0:
                best = max(best, out[r, c - 1])
            out[r, c] = min(best, mask[r, c])
    queue = np.empty(height * width + 1, np.int32)
    waits = np.zeros((height, width), np.bool_)
    first, last = 0, 0
    for r in range(height - 1, -1, -1):
        for c in range(width - 1, -1, -1):
            best = out[r, c]
            if r < height - 1:
                best = max(best, out[r + 1, c])
            if c < width - 1:
                best = max(best, out[r, c + 1])
            best = min(best, mask[r, c])
            out[r, c] = best
            below = r < height - 1 and out[r + 1, c] < min(best, mask[r + 1, c])
            right = c < width - 1 and out[r, c + 1] < min(best, mask[r, c + 1])
            if below or right:
                queue[last] = r * width + c
                waits[r, c] = True
                last += 1
    room = height * width + 1  # a ring: no pixel waits twice
    while first != last:
        r, c = queue[first] // width, queue[first] % width
        first = (first + 1) % room
        waits[r, c] = False
        for direction in range(4):
            y = r + (direction == 1) - (direction == 3)
            x = c + (direction == 0) - (direction == 2)
            if y < 0 or x < 0 or y >= height or x >= width:
                continue
            value = min(out[r, c], mask[y, x])
            if out[y, x] < value:
                out[y, x] = value
                if not waits[y, x]:
                    waits[y, x] = True
                    queue[last] = y * width + x
                    last = (last + 1) % room
    return out
