/** Reads and makes whole checkpoints for tests. */
import { createHash } from 'node:crypto';
import { cpSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { openCheckpoint, type TensorToWrite, writeSafetensors } from '../../lib/checkpoint/index.ts';

export interface HeldTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Dense, in the checkpoint's element type. */
  readonly bytes: Uint8Array;
}

/** Every tensor of a checkpoint, as a dense one. */
export function tensorsOf(dir: string): Map<string, HeldTensor> {
  using checkpoint = openCheckpoint(dir);
  return new Map(
    [...checkpoint.names()].map((name) => {
      const { dtype, shape } = checkpoint.get(name);
      return [name, { dtype, shape, bytes: checkpoint.read(name).slice() }];
    }),
  );
}

/** Name → type, shape and hash of every tensor, to compare checkpoints by what they hold. */
export function contentsOf(dir: string): Record<string, string> {
  return Object.fromEntries(
    [...tensorsOf(dir)].map(([name, { dtype, shape, bytes }]) => [name, `${dtype} [${shape}] ${sha256(bytes)}`]),
  );
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** The elements' bit patterns: zero is +0. */
export function bitsOf({ dtype, bytes }: HeldTensor): Uint16Array | Uint32Array {
  return dtype === 'F32' ? new Uint32Array(bytes.slice().buffer) : new Uint16Array(bytes.slice().buffer);
}

/** Path → SHA-256 of every file in a folder and its subfolders. */
export function hashesOf(dir: string): Record<string, string> {
  const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return Object.fromEntries(paths.map((path) => [relative(dir, path), sha256(readFileSync(path))]));
}

/**
 * Writes at `to` a copy of a checkpoint, in one file, whose tensors are what `edit` makes of the source's. Config and other
 * files are copied.
 */
export async function editedCheckpoint(
  from: string,
  to: string,
  edit: (tensors: Map<string, HeldTensor>) => void,
): Promise<string> {
  cpSync(from, to, { recursive: true });
  for (const name of readdirSync(to)) if (name.includes('.safetensors')) rmSync(join(to, name));
  const tensors = tensorsOf(from);
  edit(tensors);
  await writeSafetensors(
    join(to, 'model.safetensors'),
    [...tensors].map(
      ([name, { dtype, shape, bytes }]): TensorToWrite => ({
        name,
        dtype: dtype as TensorToWrite['dtype'],
        shape,
        byteLength: bytes.byteLength,
        data: () => bytes,
      }),
    ),
    { metadata: { format: 'pt' } },
  );
  return to;
}
