/** What the options of benchmarks list: formats, sizes, batches. */
import { EspalierError } from '../errors.ts';
import type { MatrixFormat } from '../kernels.ts';

/** A packed format, as `bitmap int4` names it. */
export interface BenchFormat {
  readonly format: Exclude<MatrixFormat, 'auto'>;
  readonly values: 'bf16' | 'f32' | 'int8' | 'int4';
}

/** Rows are outputs, columns inputs. */
export interface MatrixSize {
  readonly rows: number;
  readonly cols: number;
}

/** What is measured unless formats are given, dense before what is compared with it. */
export const defaultFormats: readonly BenchFormat[] = [
  ...(['bf16', 'int8', 'int4'] as const).flatMap((values) =>
    (['dense', 'bitmap', '2:4'] as const).map((format) => ({ format, values })),
  ),
  { format: '32:64', values: 'int4' },
];

export const maxBatch = 4096;
const maxRows = 2 ** 26;
const maxCols = 2 ** 17;

export function formatName({ format, values }: BenchFormat): string {
  return `${format} ${values}`;
}

/** Reads `dense bf16,2:4 int8`. @throws USAGE naming `formats` */
export function parseFormats(text: string): BenchFormat[] {
  return parseList(text, 'formats', (item) => {
    const match = /^(dense|bitmap|(\d{1,3}):(\d{1,3})) +(bf16|f32|int8|int4)$/.exec(item);
    const [, format, keep, group, values] = match ?? [];
    const isOrdered = keep === undefined || (Number(keep) >= 1 && Number(keep) < Number(group));
    const isStored = values !== 'f32' || format === 'dense';
    if (match === null || !isOrdered || !isStored) {
      return 'dense, bitmap or N:M (1 ≤ N < M), then bf16, int8 or int4 (dense also f32), for example "2:4 int8"';
    }
    return { format: format as BenchFormat['format'], values: values as BenchFormat['values'] };
  });
}

/** Reads `14336x4096,4096x14336`. @throws USAGE naming `sizes` */
export function parseSizes(text: string): MatrixSize[] {
  return parseList(text, 'sizes', (item) => {
    const match = /^(\d+)x(\d+)$/i.exec(item);
    const [rows, cols] = match === null ? [0, 0] : [Number(match[1]), Number(match[2])];
    if (rows < 1 || rows > maxRows || cols < 2 || cols > maxCols || cols % 2 !== 0) {
      return `ROWSxCOLS with up to ${maxRows} rows and an even number of columns up to ${maxCols}, for example 14336x4096`;
    }
    return { rows, cols };
  });
}

/** Reads `1,4,16`. @throws USAGE naming `batch` */
export function parseBatch(text: string): number[] {
  return parseList(text, 'batch', (item) => {
    const batch = /^\d+$/.test(item) ? Number(item) : 0;
    return batch >= 1 && batch <= maxBatch ? batch : `an integer from 1 to ${maxBatch}, for example 1,4,16`;
  });
}

/** `read` gives the item, or as a string what it should have been. */
function parseList<T extends object | number>(text: string, field: string, read: (item: string) => T | string): T[] {
  const items = text.split(',').map((item) => item.trim());
  return items.map((item, i) => {
    const value = read(item);
    if (typeof value === 'string') {
      throw new EspalierError('USAGE', `each of ${field} must be ${value}; found ${JSON.stringify(item)}`, { field });
    }
    if (items.indexOf(item) < i) {
      throw new EspalierError('USAGE', `${field} names ${JSON.stringify(item)} twice`, { field });
    }
    return value;
  });
}
