/** The demonstration's table, for people. */
import type { DemoReport } from './demo.ts';
import { formatBytes, formatDuration, formatPercent } from './format.ts';
import { formatTable } from './table.ts';

export function describeDemo({ corpus, prompt, rows, seconds }: DemoReport): string {
  const [dense] = rows;
  const table = formatTable(
    [
      { title: 'model' },
      { title: 'perplexity', align: 'right' },
      { title: 'zeros in experts', align: 'right' },
      { title: 'saved dense', align: 'right' },
      { title: 'saved sparse', align: 'right' },
      { title: 'weights as run', align: 'right' },
      { title: 'tokens/s', align: 'right' },
    ],
    rows.map(({ name, perplexity, sparsity, denseBytes, sparseBytes, runBytes, tokensPerSecond }) => [
      name,
      perplexity.toFixed(2),
      formatPercent(sparsity, 1),
      formatBytes(denseBytes),
      sparseBytes === undefined ? '-' : formatBytes(sparseBytes),
      formatBytes(runBytes),
      tokensPerSecond.toFixed(0),
    ]),
  );
  const best = rows.slice(1).reduce((a, b) => (b.perplexity < a.perplexity ? b : a));
  const text =
    corpus.kind === 'self'
      ? 'Text: the package with speeches is not installed, so the model was calibrated and measured on text that it wrote\n' +
        `itself (${corpus.calibrationTokens} and ${corpus.evaluationTokens} tokens, from two seeds). Such perplexities compare these rows with each other, nothing else.`
      : `Text: ${corpus.source}; ${corpus.calibrationTokens} tokens to calibrate, ${corpus.evaluationTokens} to measure.`;
  return [
    table,
    '',
    text,
    'Perplexity is of the sparse save, loaded again. tokens/s: one sequence, median of 5 runs in turns. This model is so small',
    "that it stays in the processor's cache, where fewer bytes gain little; what sparse weights save counts in models larger than it.",
    '',
    `"${prompt} …", greedy:`,
    `  ${dense!.name}: ${oneLine(dense!.continuation)}`,
    `  ${best.name}: ${oneLine(best.continuation)}`,
    '',
    `Done in ${formatDuration(seconds)}; everything made was in a temporary folder and is removed.`,
  ].join('\n');
}

function oneLine(text: string): string {
  return text.trim().replaceAll(/\s+/g, ' ');
}
