/**
 * Names of the weight files of a checkpoint. A dense one has the names that every loader knows. A sparse or packed one
 * must not: loaders that do not know its `quant_method` only warn, and would start from random experts if they found its
 * files.
 */
export type Storage = 'dense' | 'sparse' | 'packed';

export const storages: readonly Storage[] = ['dense', 'sparse', 'packed'];

const stems = { dense: 'model', sparse: 'espalier', packed: 'espalier-packed' } as const satisfies Record<
  Storage,
  string
>;

/** The file of a checkpoint in one piece: `model.safetensors`. */
export function singleName(storage: Storage): string {
  return `${stems[storage]}.safetensors`;
}

/** The index of a checkpoint in shards: `model.safetensors.index.json`. */
export function indexName(storage: Storage): string {
  return `${singleName(storage)}.index.json`;
}

/** Shard `number` (from 1) of `count`: `model-00001-of-00004.safetensors`. */
export function shardName(storage: Storage, number: number, count: number): string {
  const pad = (n: number) => String(n).padStart(5, '0');
  return `${stems[storage]}-${pad(number)}-of-${pad(count)}.safetensors`;
}

/** Beside a pruned checkpoint: what was done to it. */
export const manifestName = 'espalier.json';
