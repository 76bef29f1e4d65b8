/** An inspection for people. */
import { describeRecipe } from '../prune/recipe.ts';
import { formatBytes, formatCount, formatPercent } from './format.ts';
import type { Inspection } from './inspect.ts';
import { formatTable } from './table.ts';

export function describeInspection(inspection: Inspection): string {
  const { parameters, bytes, storage, layers, pruned } = inspection;
  const facts: [string, string][] = [
    ['path', inspection.path],
    ['family', inspection.family],
    ['layers', String(layers.length)],
    ['hidden size', String(inspection.hiddenSize)],
    ['vocabulary', String(inspection.vocabularySize)],
    ['context', `${inspection.maxPositions} tokens`],
    [
      'parameters',
      `${formatCount(parameters.total)}, of them ${formatCount(parameters.active)} active for a token and ${formatCount(parameters.experts)} in experts`,
    ],
    ['stored', `${formatBytes(bytes.stored)} (${storage})`],
    ['as dense', formatBytes(bytes.dense)],
    ['as sparse', formatBytes(bytes.sparse)],
    ['expert sparsity', formatPercent(inspection.sparsity)],
  ];
  if (pruned !== undefined) {
    facts.push(['pruned', `${describeRecipe(pruned.recipe)}, by Espalier ${pruned.version}`]);
  }
  const width = Math.max(...facts.map(([name]) => name.length)) + 2;
  const table = formatTable(
    [
      { title: 'layer', align: 'right' },
      { title: 'experts', align: 'right' },
      { title: 'per token', align: 'right' },
      { title: 'expert weights', align: 'right' },
      { title: 'zeros', align: 'right' },
      { title: 'sparsity', align: 'right' },
    ],
    layers.map(({ layer, experts, topK, size, zeros, sparsity }) => [
      String(layer),
      String(experts),
      String(topK),
      formatCount(size),
      formatCount(zeros),
      formatPercent(sparsity),
    ]),
  );
  return `${facts.map(([name, value]) => name.padEnd(width) + value).join('\n')}\n\n${table}`;
}
