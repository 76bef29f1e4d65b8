/** Where a model runs. */
import { EspalierError } from '../errors.ts';

/**
 * `cuda`: on GPUs, the first alone if the model fits there with its KV cache, otherwise as many as it needs, each with a
 * run of its layers. `cuda:1`: on the second GPU. `cuda:0,2`: likewise on as many of these as it needs, in this order.
 */
export type DeviceName = 'cpu' | 'cuda' | `cuda:${number}` | `cuda:${number},${string}`;

/**
 * The numbers of the GPUs that a device names, none for all that there are; undefined for the CPU. @throws USAGE for
 * anything else
 */
export function gpusOf(device: string): number[] | undefined {
  if (device === 'cpu') return undefined;
  if (device === 'cuda') return [];
  const list = /^cuda:(\d{1,3}(?:,\d{1,3})*)$/.exec(device)?.[1]?.split(',').map(Number);
  if (list === undefined) throw refusal(device, 'cpu, cuda, or GPUs such as cuda:1 or cuda:0,1');
  if (new Set(list).size < list.length) throw refusal(device, 'a list that names each GPU once');
  return list;
}

/** For what runs on one GPU: its number, 0 for `cuda`; undefined for the CPU. @throws USAGE for anything else */
export function gpuOf(device: string): number | undefined {
  const gpus = gpusOf(device);
  if (gpus !== undefined && gpus.length > 1) throw refusal(device, 'cpu, cuda, or one GPU such as cuda:1 here');
  return gpus === undefined ? undefined : (gpus[0] ?? 0);
}

function refusal(device: string, allowed: string): EspalierError {
  return new EspalierError('USAGE', `device must be ${allowed}; found ${JSON.stringify(device)}`, { field: 'device' });
}
