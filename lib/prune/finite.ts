/** Refuses NaN and infinity in the tensors that no layer holds; those of a layer are checked as it is loaded. */
import { throwIfAborted } from '../abort.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { isFloatDType, tensorBytes } from '../checkpoint/dtype.ts';
import { pieceBytes } from '../checkpoint/tensor.ts';
import { EspalierError } from '../errors.ts';
import type { ModelSpec } from '../models/spec.ts';

/** An element is NaN or infinite when all bits of its exponent are set. */
const exponents = { BF16: 0x7f80, F16: 0x7c00, F32: 0x7f800000 } as const;

/** Reads embedding, final norm and head once. @throws NONFINITE naming the tensor, ABORTED */
export async function checkFiniteOutsideLayers(
  checkpoint: Checkpoint,
  { embedding, finalNorm, head }: ModelSpec,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const name of new Set([embedding.tensor, finalNorm.tensor, head.tensor])) {
    const count = await countNonfinite(checkpoint, name, signal);
    if (count === 0) continue;
    throw new EspalierError('NONFINITE', `${name} holds ${count} values that are NaN or infinite`, {
      file: checkpoint.dir,
      tensor: name,
    });
  }
}

async function countNonfinite(checkpoint: Checkpoint, name: string, signal: AbortSignal | undefined): Promise<number> {
  const source = checkpoint.source(name);
  const { dtype, shape } = source;
  if (!isFloatDType(dtype)) return 0;
  const exponent = exponents[dtype];
  const total = tensorBytes(dtype, shape);
  let count = 0;
  for (let begin = 0; begin < total; begin += pieceBytes) {
    throwIfAborted(signal);
    const { buffer } = Uint8Array.from(await source.read(begin, Math.min(total, begin + pieceBytes)));
    const elements = dtype === 'F32' ? new Uint32Array(buffer) : new Uint16Array(buffer);
    for (let i = 0; i < elements.length; i++) if ((elements[i]! & exponent) === exponent) count++;
  }
  return count;
}
