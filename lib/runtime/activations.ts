/** How products with bf16 weights see their inputs. */
import { EspalierError } from '../errors.ts';

/**
 * `float32`: as they are. `bf16`: rounded to nearest even, sums in float32; long prompts and large batches then run on the
 * matrix units of processors that have them, many times as fast, and results are the same bits on every processor. Weights
 * of other types do not ask: int8 and int4 always see int8, f32 sees float32.
 */
export const activationTypes = ['float32', 'bf16'] as const;
export type ActivationType = (typeof activationTypes)[number];

/** @throws USAGE for anything else */
export function checkActivations(found: unknown): asserts found is ActivationType {
  if ((activationTypes as readonly unknown[]).includes(found)) return;
  throw new EspalierError(
    'USAGE',
    `activations must be one of ${activationTypes.join(', ')}; found ${JSON.stringify(found)}`,
    { field: 'activations' },
  );
}
