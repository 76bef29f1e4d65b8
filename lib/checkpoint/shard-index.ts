/** `model.safetensors.index.json` (`espalier.safetensors.index.json` of a sparse one): which shard holds which tensor. */
import { lstatSync, realpathSync } from 'node:fs';
import { basename, dirname, join, sep } from 'node:path';
import { EspalierError } from '../errors.ts';
import type { NativeSafetensorsFile } from '../native.ts';
import { writeFileAtomic } from './atomic-file.ts';
import { indexName, type Storage } from './file-names.ts';
import { readJsonFile } from './json-file.ts';

const maxBytes = 256 * 2 ** 20;

export interface ShardIndex {
  path: string;
  /** Shard file names, in ascending order. */
  shards: string[];
  /** Tensor name → shard file name. */
  weightMap: Record<string, string>;
  /** The `metadata` object as it stands in the file; empty where there is none. */
  metadata: Record<string, unknown>;
}

/** Reads the index of a checkpoint folder and checks that every entry names a file in that folder. */
export function readShardIndex(dir: string, storage: Storage): ShardIndex {
  const path = join(dir, indexName(storage));
  const { weight_map: weightMap, metadata = {} } = readJsonFile(path, 'INDEX', maxBytes).value;
  if (!isObject(weightMap))
    throw indexError(path, '"weight_map" must be an object of tensor names and shard file names');
  if (!isObject(metadata)) throw indexError(path, '"metadata" must be an object');
  const shards = new Set<string>();
  for (const name in weightMap) {
    const shard = weightMap[name];
    if (typeof shard !== 'string') throw indexError(path, 'the shard of a tensor must be a file name', name);
    if (shards.has(shard)) continue;
    checkShardPath(path, dir, shard);
    shards.add(shard);
  }
  return { path, shards: [...shards].sort(), weightMap: weightMap as Record<string, string>, metadata };
}

/**
 * An index may name only plain files beside it. A symbolic link is followed where it stays in the folder, and out of it
 * only in the layout of the Hugging Face cache (`snapshots/<revision>/` linking into `blobs/` of the same repository).
 */
function checkShardPath(path: string, dir: string, shard: string): void {
  if (shard === '' || shard === '.' || shard === '..' || /[/\\\0]/.test(shard)) {
    throw indexError(
      path,
      `shard ${JSON.stringify(shard.slice(0, 200))} must be the name of a file in the same folder`,
    );
  }
  const file = join(dir, shard);
  const found = lstatSync(file, { throwIfNoEntry: false });
  if (found === undefined) throw indexError(path, `shard ${shard} is missing; was the download complete?`);
  if (!found.isSymbolicLink()) return;
  let target: string;
  try {
    target = realpathSync(file);
  } catch {
    throw indexError(path, `shard ${shard} is a symbolic link that leads nowhere`);
  }
  const folder = realpathSync(dir);
  if (target.startsWith(folder + sep)) return;
  const snapshots = dirname(folder);
  const blobs = join(dirname(snapshots), 'blobs') + sep;
  if (basename(snapshots) === 'snapshots' && target.startsWith(blobs)) return;
  throw indexError(path, `shard ${shard} is a symbolic link that leaves the folder, to ${target}`);
}

/** Checks the index against the opened shards: each tensor in the one file that the index says, and the total size. */
export function checkShards(index: ShardIndex, files: readonly NativeSafetensorsFile[]): void {
  let bytes = 0;
  let found = 0;
  files.forEach((file, i) => {
    const shard = index.shards[i]!;
    for (const tensor of file.tensors) {
      const mapped = Object.hasOwn(index.weightMap, tensor.name) ? index.weightMap[tensor.name] : undefined;
      if (mapped === undefined)
        throw indexError(index.path, `shard ${shard} holds a tensor that it does not list`, tensor.name);
      if (mapped !== shard) {
        throw indexError(index.path, `it maps a tensor to ${mapped}, but ${shard} holds one of that name`, tensor.name);
      }
      found++;
      bytes += tensor.end - tensor.begin;
    }
  });
  if (found !== Object.keys(index.weightMap).length) {
    const held = new Set(files.flatMap((file) => file.tensors.map((tensor) => tensor.name)));
    for (const name in index.weightMap) {
      if (held.has(name)) continue;
      throw indexError(index.path, `it maps a tensor to ${index.weightMap[name]}, which does not hold it`, name);
    }
  }
  const total = index.metadata.total_size;
  if (total !== undefined && total !== bytes) {
    throw indexError(index.path, `"total_size" is ${JSON.stringify(total)}, but the tensors take ${bytes} bytes`);
  }
}

/** Writes the index of the shards given as file name → names and byte counts of its tensors. */
export async function writeShardIndex(
  dir: string,
  storage: Storage,
  shards: ReadonlyMap<string, readonly { name: string; byteLength: number }[]>,
  metadata: Readonly<Record<string, unknown>> = {},
): Promise<void> {
  const entries = [...shards].flatMap(([shard, tensors]) => tensors.map(({ name }) => [name, shard] as const));
  entries.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  let total = 0;
  for (const tensors of shards.values()) for (const { byteLength } of tensors) total += byteLength;
  // fromEntries defines properties, so a tensor called __proto__ is written like any other.
  const index = { metadata: { ...metadata, total_size: total }, weight_map: Object.fromEntries(entries) };
  await writeFileAtomic(join(dir, indexName(storage)), `${JSON.stringify(index, null, 2)}\n`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function indexError(path: string, problem: string, tensor?: string): EspalierError {
  const about = tensor === undefined ? '' : ` (tensor ${JSON.stringify(tensor.slice(0, 200))})`;
  return new EspalierError('INDEX', `${path}: ${problem}${about}`, {
    file: path,
    ...(tensor === undefined ? {} : { tensor }),
  });
}
