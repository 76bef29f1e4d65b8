/** The table of `bench model`. */
import { basename } from 'node:path';
import { formatPercent } from '../report/format.ts';
import { formatTable } from '../report/table.ts';
import { machineText } from './measure.ts';
import type { ModelBenchReport } from './model.ts';

/** A line on the machine, then a row for each model and batch size. */
export function describeModelBench(report: ModelBenchReport): string {
  const { promptTokens, decodeSteps, kvCache, activations, models } = report;
  const titles = ['model', 'weights', 'experts as', 'load s', 'MB/token', 'prefill tok/s', 'batch', 'decode tok/s'];
  const columns = [...titles, 'ms/step', 'GB/s', 'of ceiling', ...(models.length > 1 ? ['× first'] : [])];
  const rows = models.flatMap((of) =>
    of.decode.map((at, i) => {
      const whole = [
        basename(of.model),
        describeWeights(of.weights),
        of.expertFormats.join(', '),
        of.loadSeconds.toFixed(1),
        (of.bytesPerToken / 1e6).toFixed(1),
        of.prefillTokensPerSecond.toFixed(0),
      ];
      return [
        ...(i === 0 ? whole : whole.map(() => '')),
        String(at.batch),
        at.tokensPerSecond.toFixed(1),
        at.millisecondsPerStep.toFixed(2),
        at.gigabytesPerSecond?.toFixed(1) ?? '–',
        at.fractionOfCeiling === null ? '–' : formatPercent(at.fractionOfCeiling, 0),
        ...(models.length > 1 ? [at.timesFirst.toFixed(2)] : []),
      ];
    }),
  );
  const gpus = Math.max(...models.map((of) => of.gpus.length));
  const onGpus = gpus > 1 ? ` (${gpus} GPUs)` : '';
  const ceilings = models.map(({ ceilingGigabytesPerSecond }) => ceilingGigabytesPerSecond.toFixed(1)).join(', ');
  return [
    `${machineText(report)}${onGpus}; activations ${activations}, KV cache ${kvCache}, prompt ${promptTokens}, ${decodeSteps} decode steps; ` +
      `read ceiling ${ceilings} GB/s`,
    '',
    formatTable(
      columns.map((title, i) => ({ title, align: i < 3 ? 'left' : 'right' })),
      rows,
    ),
  ].join('\n');
}

function describeWeights({ experts, rest }: { readonly experts: string; readonly rest: string }): string {
  return experts === rest ? experts : `experts=${experts},rest=${rest}`;
}
