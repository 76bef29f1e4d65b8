/** Agglomerative clustering of experts from their distances, `[n, n]` row by row and symmetric. */

export interface Merge {
  /** Distance of the pair that made two clusters one. */
  readonly distance: number;
  readonly a: number;
  readonly b: number;
}

/**
 * STUN's rule (arXiv 2409.06211 and its code): the closest pair below the threshold joins its clusters if both ends are
 * nearer than the threshold to every member of the other's cluster; a pair that fails is never looked at again, and neither
 * is one that a union has used, which makes it stricter than complete linkage. The unions come in order of their distance.
 *
 * @param fewest Stops at so many clusters.
 */
export function strictMerges(distances: ArrayLike<number>, n: number, threshold: number, fewest: number): Merge[] {
  const pairs: Merge[] = [];
  for (let a = 0; a < n; a++) {
    for (let b = a + 1; b < n; b++) {
      const distance = distances[a * n + b]!;
      if (distance < threshold) pairs.push({ distance, a, b });
    }
  }
  pairs.sort((x, y) => x.distance - y.distance);
  const used = new Set<number>();
  const clusters = Array.from({ length: n }, (_, i) => [i]);
  const key = (i: number, j: number) => Math.min(i, j) * n + Math.max(i, j);
  const near = (i: number, j: number) => i !== j && !used.has(key(i, j)) && distances[i * n + j]! < threshold;
  const merges: Merge[] = [];
  for (const pair of pairs) {
    if (merges.length >= n - fewest) break;
    const { a, b } = pair;
    if (used.has(key(a, b))) continue;
    const [left, right] = [clusters[a]!, clusters[b]!];
    if (left !== right && left.every((c) => near(c, b)) && right.every((c) => near(c, a))) {
      for (const c of left) used.add(key(c, b));
      for (const c of right) used.add(key(c, a));
      const union = [...left, ...right];
      for (const c of union) clusters[c] = union;
      merges.push(pair);
    } else used.add(key(a, b));
  }
  return merges;
}

/** The clusters that merges leave of n, each sorted, in order of their first member. */
export function clustersOf(n: number, merges: readonly Merge[]): number[][] {
  const clusters = Array.from({ length: n }, (_, i) => [i]);
  for (const { a, b } of merges) {
    const union = [...new Set([...clusters[a]!, ...clusters[b]!])].sort((x, y) => x - y);
    for (const c of union) clusters[c] = union;
  }
  return [...new Set(clusters)];
}

/** Joins the two clusters with the smallest mean distance between members until `count` are left; ties to the lower index. */
export function averageLinkage(distances: ArrayLike<number>, n: number, count: number): number[][] {
  let clusters = Array.from({ length: n }, (_, i) => [i]);
  const mean = (x: readonly number[], y: readonly number[]) => {
    let sum = 0;
    for (const i of x) for (const j of y) sum += distances[i * n + j]!;
    return sum / (x.length * y.length);
  };
  while (clusters.length > count) {
    let [best, first, second] = [Number.POSITIVE_INFINITY, 0, 1];
    for (let i = 0; i < clusters.length; i++) {
      for (let j = i + 1; j < clusters.length; j++) {
        const distance = mean(clusters[i]!, clusters[j]!);
        if (distance < best) [best, first, second] = [distance, i, j];
      }
    }
    const union = [...clusters[first]!, ...clusters[second]!].sort((x, y) => x - y);
    clusters = clusters.filter((_, i) => i !== second).map((cluster, i) => (i === first ? union : cluster));
  }
  return clusters;
}

/** Euclidean distances of rows. */
export function euclidean(rows: readonly ArrayLike<number>[]): Float64Array {
  const n = rows.length;
  const distances = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      const [a, b] = [rows[i]!, rows[j]!];
      let sum = 0;
      for (let h = 0; h < a.length; h++) sum += (a[h]! - b[h]!) ** 2;
      distances[i * n + j] = distances[j * n + i] = Math.sqrt(sum);
    }
  }
  return distances;
}
