/** The files that a pruned checkpoint's tensors are written to. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { type Storage, shardName } from '../checkpoint/file-names.ts';
import { encodeSparse } from '../checkpoint/sparse-encode.ts';
import type { TensorSource, TensorToWrite } from '../checkpoint/tensor.ts';
import { copyOf, writeSafetensors } from '../checkpoint/writer.ts';
import type { ModelSpec } from '../models/spec.ts';
import { layerTensorNames } from './layer.ts';
import type { Recipe } from './recipe.ts';
import { recordOf, type ShardRecord } from './run-state.ts';

/** A shard for each layer, and one for everything else. */
export function shardOf(index: number, { layers }: ModelSpec, storage: Storage): string {
  return shardName(storage, index + 1, layers.length + 1);
}

export async function writeShard(
  folder: string,
  name: string,
  sources: readonly TensorSource[],
  recipe: Recipe,
  signal: AbortSignal | undefined,
): Promise<ShardRecord> {
  const tensors: TensorToWrite[] = [];
  for (const source of sources) {
    tensors.push(...(recipe.save === 'sparse' ? await encodeSparse(source, { signal }) : [copyOf(source)]));
  }
  mkdirSync(folder, { recursive: true });
  const path = join(folder, name);
  await writeSafetensors(path, tensors, { metadata: { format: 'pt' }, signal });
  const sizes = tensors.map(({ name: tensor, byteLength }) => ({ name: tensor, byteLength }));
  return { ...(await recordOf(path, name)), tensors: sizes };
}

/** Everything that belongs to no layer, as it was. */
export async function writeRest(
  checkpoint: Checkpoint,
  spec: ModelSpec,
  recipe: Recipe,
  folder: string,
  signal: AbortSignal | undefined,
): Promise<ShardRecord> {
  const inLayers = new Set(spec.layers.flatMap((layer) => [...layerTensorNames(layer)]));
  const rest = [...checkpoint.names()].filter((name) => !inLayers.has(name)).map((name) => checkpoint.source(name));
  return writeShard(folder, shardOf(spec.layers.length, spec, recipe.save), rest, recipe, signal);
}
