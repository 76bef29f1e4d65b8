/** What a pruning run did or would do, for people. */
import type { DryRunResult } from '../prune/dry-run.ts';
import type { LayerMemory } from '../prune/memory.ts';
import type { PruneResult } from '../prune/prune.ts';
import { describeRecipe } from '../prune/recipe.ts';
import { formatBytes, formatCount, formatDuration, formatPercent } from './format.ts';
import { formatTable } from './table.ts';

export function describePruned(result: PruneResult, seconds: number): string {
  const { output, recipe, layers, sparsity, alreadyFinished } = result;
  if (alreadyFinished) return `${output} was finished by an earlier run; nothing to do`;
  const table = formatTable(
    [
      { title: 'layer', align: 'right' },
      { title: 'experts', align: 'right' },
      { title: 'expert weights', align: 'right' },
      { title: 'zeros', align: 'right' },
      { title: 'sparsity', align: 'right' },
      { title: 'tokens of an expert', align: 'right' },
      { title: 'kurtosis', align: 'right' },
    ],
    layers.map(({ layer, experts, size, zeros, sparsity: own, kurtosis }) => {
      const tokens = experts.map((expert) => expert.tokens);
      return [
        String(layer),
        String(experts.length),
        formatCount(size),
        formatCount(zeros),
        formatPercent(own),
        tokens.some((count) => count > 0) ? `${Math.min(...tokens)} to ${Math.max(...tokens)}` : '-',
        kurtosis.map(({ kept }) => kept.toFixed(2)).join(' → '),
      ];
    }),
  );
  return `${table}\n\n${output}: ${describeRecipe(recipe)}; ${formatPercent(sparsity)} of the expert weights are zero (${formatDuration(seconds)})`;
}

function describeMemory({ peak, weights, activations, stages, ahead }: LayerMemory): string {
  const parts = `layer ${formatBytes(weights)}, activations ${formatBytes(activations)}`;
  const next = ahead > 0 ? ` or then the next layer ${formatBytes(ahead)}` : '';
  return `${formatBytes(peak)}: ${parts}, pruning ${formatBytes(Math.max(0, ...stages))}${next}`;
}

export function describeDryRun(result: DryRunResult): string {
  const { output, recipe, layers, matrices, weights, zeros, calibration } = result;
  const data =
    calibration === null
      ? 'none needed'
      : `${calibration.sequences} sequences, ${calibration.tokens} tokens (${calibration.source})`;
  return [
    `would prune   ${matrices} expert matrices in ${layers.length} layers, ${formatCount(weights)} weights`,
    `recipe        ${describeRecipe(recipe)}`,
    `zeros         ${formatCount(zeros)} (${formatPercent(zeros / Math.max(1, weights))})`,
    `calibration   ${data}`,
    `disk needed   ${formatBytes(result.bytesNeeded)}`,
    `peak memory   ${describeMemory(result.memory)}`,
    `output        ${output}, saved ${recipe.save}`,
    'Nothing was written. Weights were not read: NaN or infinity among them would show in the run.',
  ].join('\n');
}
