/** What a model may compute with, beside its weights. */
import { EspalierError } from '../errors.ts';

/**
 * How products with bf16 weights see their inputs. `float32`: as they are. `bf16`: rounded to nearest even, sums in
 * float32; long prompts and large batches then run on the matrix units of processors that have them, several times as fast,
 * and results are the same bits on every processor. Weights of other types do not ask: int8 and int4 always see int8, f32
 * sees float32.
 */
export const activationTypes = ['float32', 'bf16'] as const;
export type ActivationType = (typeof activationTypes)[number];

/**
 * What the KV cache holds keys and values as. `float32`: exactly. `bf16`: rounded to nearest even, in half the memory.
 * `int8`: whole numbers with one scale for each token and KV head, in a quarter of it.
 */
export const kvCacheTypes = ['float32', 'bf16', 'int8'] as const;
export type KvCacheType = (typeof kvCacheTypes)[number];

/** @throws USAGE if the option `field` is none of the allowed names */
export function checkChoice(field: string, found: unknown, allowed: readonly string[]): void {
  if ((allowed as readonly unknown[]).includes(found)) return;
  throw new EspalierError('USAGE', `${field} must be one of ${allowed.join(', ')}; found ${JSON.stringify(found)}`, {
    field,
  });
}
