/** The table of `bench kernels`. */
import { formatPercent } from '../report/format.ts';
import { type Column, formatTable } from '../report/table.ts';
import type { KernelBenchReport, KernelBenchRow } from './kernels.ts';
import { machineText } from './measure.ts';

type Shown = readonly [title: string, of: (row: KernelBenchRow) => string];

/** A line on the machine and the sizes, then a row for each measurement; columns that would not vary are left out. */
export function describeKernelBench(report: KernelBenchReport): string {
  const { device, rows, skipped, activations, matrixUnitGigaflopsPerSecond: peak } = report;
  const onCpu = device === 'cpu';
  const sizes = [...new Set(rows.map(describeSize))];
  const batches = new Set(rows.map(({ batch }) => batch));
  const columns: Shown[] = [
    ['format', ({ format }) => format],
    ...when(sizes.length > 1, ['size', (row) => `${row.rows} × ${row.cols}`]),
    ...when(batches.size > 1, ['batch', ({ batch }) => String(batch)]),
    ['bits/weight', ({ bitsPerWeight }) => bitsPerWeight.toFixed(2)],
    ['µs', ({ microseconds }) => microseconds.toFixed(microseconds < 1000 ? 1 : 0)],
    ['GB/s', ({ gigabytesPerSecond }) => gigabytesPerSecond.toFixed(1)],
    ['best read GB/s', ({ ceilingGigabytesPerSecond }) => ceilingGigabytesPerSecond.toFixed(1)],
    ['of it', ({ fractionOfCeiling }) => formatPercent(fractionOfCeiling, 0)],
    ...when(onCpu, ['plain read GB/s', ({ plainReadGigabytesPerSecond: rate }) => rate.toFixed(1)]),
    ...when(onCpu, ['of it', ({ fractionOfPlainRead }) => formatPercent(fractionOfPlainRead, 0)]),
    ['× dense', ({ timesDense }) => timesDense?.toFixed(2) ?? '–'],
    ['× dense bf16 at best', ({ timesIdealDenseBf16 }) => timesIdealDenseBf16.toFixed(2)],
    ...when(onCpu, ['at plain read', ({ timesPlainDenseBf16 }) => timesPlainDenseBf16.toFixed(2)]),
    ...when(!batches.has(1) || batches.size > 1, [
      'GFLOP/s',
      ({ denseGigaflopsPerSecond }) => denseGigaflopsPerSecond.toFixed(0),
    ]),
    ...when(
      rows.some((row) => row.fractionOfMatrixUnitPeak !== null),
      [
        'of matrix unit',
        (row) => (row.fractionOfMatrixUnitPeak === null ? '–' : formatPercent(row.fractionOfMatrixUnitPeak, 0)),
      ],
    ),
  ];
  const table = formatTable(
    columns.map(([title]): Column => ({ title, align: title === 'format' ? 'left' : 'right' })),
    rows.map((row) => columns.map(([, of]) => of(row))),
  );
  const batch = batches.size === 1 ? `, batch ${[...batches][0]}` : '';
  return [
    `${machineText(report)}; ${sizes.join(', ')}${batch}, activations ${activations}` +
      (peak === null ? '' : `; matrix units ${peak.toFixed(0)} GFLOP/s`),
    '',
    table,
    ...skipped.map(({ format, reason }) => `${format}: not measured, ${reason}`),
  ].join('\n');
}

function when(shown: boolean, column: Shown): readonly Shown[] {
  return shown ? [column] : [];
}

function describeSize({ rows, cols, matrices }: KernelBenchRow): string {
  return `${matrices === 1 ? '' : `${matrices} matrices of `}${rows} × ${cols}`;
}
