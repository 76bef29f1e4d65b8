/**
 * Sparsities that differ by layer (OWL, Yin et al. 2024, arXiv 2310.05175): a layer with many outliers among its scores
 * |W_ij| · ‖X_j‖ keeps more. What counts as an outlier, and how far layers may differ, as in the paper's setting at 70 %.
 */
export const owlMultiple = 5;
export const owlSpread = 0.08;

/**
 * `shares[l]`: the share of outliers in layer l, which has `sizes[l]` weights. Densities are spread linearly by share over
 * 2 · owlSpread and moved so that all layers together lose `sparsity` of their weights; none leaves [0, 1), and what that
 * holds back the other layers make up for.
 */
export function owlSparsities(shares: readonly number[], sizes: readonly number[], sparsity: number): number[] {
  const present = shares.filter((_, layer) => sizes[layer]! > 0);
  const [least, most] = [Math.min(...present), Math.max(...present)];
  const spread = shares.map((share) => (most > least ? ((share - least) / (most - least)) * 2 * owlSpread : 0));
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const highest = Math.max(0.99, sparsity);
  const at = (offset: number) => spread.map((more) => Math.min(highest, Math.max(0, offset - more)));
  const reached = (offset: number) => at(offset).reduce((sum, each, layer) => sum + each * sizes[layer]!, 0) / total;
  // What is reached grows with the offset.
  let [low, high] = [0, 2];
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2;
    if (reached(middle) < sparsity) low = middle;
    else high = middle;
  }
  return at(high);
}
