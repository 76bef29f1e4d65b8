/** Checkpoints that transformers wrote, one of each family, as the code that describes models sees them. */
import { readdirSync, readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { EspalierError } from '../../lib/errors.ts';
import { describeModel } from '../../lib/models/registry.ts';
import type { CheckpointTensors } from '../../lib/models/weights.ts';

export type Json = Record<string, unknown>;
export type Header = Map<string, { shape: number[]; dtype: string }>;

export const golden = new URL('../golden/', import.meta.url);
export const readJson = <T = Json>(url: URL): T => JSON.parse(readFileSync(url, 'utf8')) as T;

/** Reads the tensor table of every safetensors file in a folder, on its own: length, JSON, nothing checked. */
export function headersOf(folder: URL): Header {
  const tensors: Header = new Map();
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.safetensors'))) {
    const bytes = readFileSync(new URL(file, folder));
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + Number(bytes.readBigUInt64LE(0)))) as Json;
    for (const [name, entry] of Object.entries(header)) {
      if (name !== '__metadata__') tensors.set(name, entry as { shape: number[]; dtype: string });
    }
  }
  return tensors;
}

export const asCheckpoint = (tensors: Header): CheckpointTensors => ({
  has: (name) => tensors.has(name),
  get: (name) => tensors.get(name),
  names: () => tensors.keys(),
});

export function family(name: string): { config: Json; tensors: Header; folder: URL } {
  const folder = new URL(`families/${name}/`, golden);
  return { config: readJson(new URL('config.json', folder)), tensors: headersOf(folder), folder };
}

export const describeFamily = (name: string, changes: Json = {}, edit: (tensors: Header) => void = () => {}) => {
  const { config, tensors } = family(name);
  edit(tensors);
  return describeModel({ ...config, ...changes }, asCheckpoint(tensors));
};

export function failure(action: () => unknown): EspalierError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(EspalierError);
    return error as EspalierError;
  }
  throw new Error('nothing was thrown');
}
