/** Where a model runs. */
import { EspalierError } from '../errors.ts';

/** `cuda` is the first GPU, `cuda:1` the second. */
export type DeviceName = 'cpu' | 'cuda' | `cuda:${number}`;

/** The number of the GPU that a device names; undefined for the CPU. @throws USAGE for anything else */
export function gpuOf(device: string): number | undefined {
  if (device === 'cpu') return undefined;
  const number = /^cuda(?::(\d{1,3}))?$/.exec(device);
  if (number !== null) return Number(number[1] ?? 0);
  throw new EspalierError(
    'USAGE',
    `device must be cpu, cuda, or a GPU such as cuda:1; found ${JSON.stringify(device)}`,
    {
      field: 'device',
    },
  );
}
