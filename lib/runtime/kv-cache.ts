/** What the KV cache holds keys and values as. */
import { EspalierError } from '../errors.ts';

/**
 * `float32`: exactly. `bf16`: rounded to nearest even, in half the memory. `int8`: whole numbers with one scale for each
 * token and KV head, in a quarter of it.
 */
export const kvCacheTypes = ['float32', 'bf16', 'int8'] as const;
export type KvCacheType = (typeof kvCacheTypes)[number];

/** @throws USAGE for anything else */
export function checkKvCache(found: unknown): asserts found is KvCacheType {
  if ((kvCacheTypes as readonly unknown[]).includes(found)) return;
  throw new EspalierError(
    'USAGE',
    `kvCache must be one of ${kvCacheTypes.join(', ')}; found ${JSON.stringify(found)}`,
    { field: 'kvCache' },
  );
}
